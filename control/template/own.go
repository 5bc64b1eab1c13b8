package template

import (
	"context"
	"errors"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// ForgetOwn has nodes remove the copies of templates that they made for tenants which are gone, or which share storage by now. A node that is away,
// or whose sandboxes use a copy yet, is asked again the next time.
func (s *Service) ForgetOwn(ctx context.Context) {
	for _, n := range s.cfg.Fleet.Nodes() {
		if !n.Connected {
			continue
		}
		for _, o := range n.Self.OwnTemplates {
			t, err := s.cfg.State.Tenant(o.Tenant)
			if err == nil && t.Isolation.Storage == state.Dedicated {
				continue
			}
			if err != nil && !errors.Is(err, state.ErrNotFound) {
				s.cfg.Logger.Error("tenant cannot be read", "tenant", o.Tenant, "error", err)
				continue
			}
			node, err := s.cfg.Fleet.Client(n.Self.ID)
			if err == nil {
				err = node.RemoveOwnTemplate(ctx, o)
			}
			if err != nil && api.StatusOf(err) != http.StatusConflict && ctx.Err() == nil {
				s.cfg.Logger.Warn("copy of a template stays", "tenant", o.Tenant, "template", o.Digest, "node", n.Self.ID, "error", err)
			}
		}
	}
}
