package pool

import (
	"context"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Drop drops slots as the keeper does that found them unfit a moment ago.
func (s *Service) Drop(ctx context.Context, ids ...api.SandboxID) error {
	return s.drop(ctx, &kept{}, ids)
}
