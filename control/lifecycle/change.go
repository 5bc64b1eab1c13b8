package lifecycle

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// reasonDeleted is the reason of a sandbox that a client deleted.
const reasonDeleted = "deleted"

// Delete implements API. The intent is recorded first: a failure after that is finished by the reconciler.
func (s *Service) Delete(ctx context.Context, tenant string, id api.SandboxID) error {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return err
	}
	if _, err := s.cfg.State.Apply(ctx, &state.SandboxStopping{ID: id, Reason: reasonDeleted}); err != nil {
		return stateError(id, err)
	}
	if err := s.stop(ctx, sb); err != nil {
		return fmt.Errorf("%w: %w", api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"sandbox %s is stopping and will be gone once its node answers", id), err)
	}
	_, err = s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxEnd{Ends: []state.End{{
		ID: id, State: state.Stopped, Reason: reasonDeleted, At: s.cfg.Now().UTC(),
	}}})
	s.forgetCopy(ctx, sb)
	return stateError(id, err)
}

// stop ends a sandbox through its placer, and on its node where the placer only asked for that.
func (s *Service) stop(ctx context.Context, sb state.Sandbox) error {
	if err := s.cfg.Placer.Stop(ctx, sb.ID); err != nil {
		return err
	}
	if sb.Node == "" {
		return nil
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return err
	}
	// The record stays for whoever placed it; a sandbox that is gone already is not found.
	if _, err := node.Stop(ctx, sb.ID, nodeapi.StopRequest{Reason: nodeapi.ExitStopped}); err != nil && !api.IsNotFound(err) {
		return err
	}
	return nil
}

// SetTimeout implements API.
func (s *Service) SetTimeout(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	return s.moveDeadline(ctx, tenant, id, d, false)
}

// Refresh implements API.
func (s *Service) Refresh(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	return s.moveDeadline(ctx, tenant, id, d, true)
}

// Connect implements API.
func (s *Service) Connect(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep Keep) (state.Sandbox, bool, error) {
	if err := s.boundTimeout(tenant, d); err != nil {
		return state.Sandbox{}, false, err
	}
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, false, err
	}
	if sb.State == state.Paused {
		sb, err = s.resume(ctx, sb, d, keep)
		return sb, err == nil, err
	}
	sb, err = s.deadline(ctx, sb, d, true)
	return sb, false, err
}

// moveDeadline records the deadline now+d, at most the end of the sandbox's maximum lifetime, and returns once its node
// has it.
func (s *Service) moveDeadline(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, extendOnly bool) (state.Sandbox, error) {
	if err := s.boundTimeout(tenant, d); err != nil {
		return state.Sandbox{}, err
	}
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	return s.deadline(ctx, sb, d, extendOnly)
}

// deadline is moveDeadline for a sandbox whose lock is held.
func (s *Service) deadline(ctx context.Context, sb state.Sandbox, d time.Duration, extendOnly bool) (state.Sandbox, error) {
	id := sb.ID
	if sb.State != state.Running {
		return state.Sandbox{}, notRunning(sb)
	}
	r, err := s.cfg.State.Apply(ctx, &state.SandboxDeadline{
		ID: id, EndAt: s.cfg.Now().UTC().Add(d), Timeout: d, ExtendOnly: extendOnly,
	})
	if err != nil {
		return state.Sandbox{}, stateError(id, err)
	}
	if r.Changed == 0 {
		return r.Sandbox, nil
	}
	node, err := s.cfg.Fleet.Client(r.Sandbox.Node)
	if err != nil {
		return state.Sandbox{}, err
	}
	if _, err := node.SetDeadline(ctx, id, r.Sandbox.EndAt); err != nil {
		if api.IsNotFound(err) {
			return state.Sandbox{}, notFound(id)
		}
		return state.Sandbox{}, fmt.Errorf("set deadline of sandbox %s: %w", id, err)
	}
	return r.Sandbox, nil
}
