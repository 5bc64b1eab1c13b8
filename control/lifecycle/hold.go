package lifecycle

import (
	"context"

	"github.com/soulbox-dev/soulbox/control/state"
)

// hold has the tables admit what a sandbox will use once a change is made that is about to be, so that nothing else is given the same
// meanwhile, on whichever server. The fact that follows ends it; else drop does, and where neither comes the reconciler. Called with the
// sandbox's lock held.
func (s *Service) hold(ctx context.Context, sb state.Sandbox, h state.Hold) (index uint64, drop func(), err error) {
	h.Run, h.At = s.cfg.Run, s.cfg.Now().UTC()
	next := sb.Holding(h)
	ask := state.Ask(&sb, &next)
	if ask == (state.Use{}) && !h.Active {
		return 0, func() {}, nil
	}
	if q := s.cfg.Quota; q != nil { // which costs no entry where it refuses
		if err := q.Reserve(sb.Tenant, sb.ID, ask); err != nil {
			return 0, nil, err
		}
		defer q.Release(sb.Tenant, sb.ID)
	}
	r, err := s.cfg.State.Apply(ctx, &state.SandboxHold{ID: sb.ID, Hold: h})
	if err != nil {
		return 0, nil, stateError(sb.ID, err)
	}
	index = r.Sandbox.Hold.Index
	return index, func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
		defer cancel()
		if _, err := s.cfg.State.Apply(clean, &state.SandboxUnhold{ID: sb.ID, Index: index}); err != nil {
			s.cfg.Logger.Warn("what a change that failed holds is not given back yet", "sandbox", sb.ID, "error", err)
		}
	}, nil
}
