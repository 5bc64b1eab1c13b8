package pool

import (
	"context"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Drop drops slots as the keeper does that found them unfit a moment ago.
func (s *Service) Drop(ctx context.Context, ids ...api.SandboxID) error {
	return s.drop(ctx, &kept{}, ids)
}

// Lull is what a pool has seen of claims.
type Lull struct {
	Taking         bool          // a create is trying a slot
	Claimed, Since time.Duration // since the last claim; since claims hold up the making, 0: they do not
	Wanted, Ready  int
}

// Waits reports whether the making of slots waits.
func (l Lull) Waits() bool {
	now := time.Now()
	s := &Service{claimed: now.Add(-l.Claimed), taken: map[api.SandboxID]struct{}{}}
	if l.Taking {
		s.taken["i"] = struct{}{}
	}
	k := &kept{wanted: l.Wanted}
	if l.Since > 0 {
		k.waiting = now.Add(-l.Since)
	}
	return s.waits(k, l.Wanted-l.Ready, l.Ready, now)
}
