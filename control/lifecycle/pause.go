package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Pause implements API. The node stops the processes first and says so, then it is recorded: a service that dies between
// the two leaves a paused sandbox that the reconciler records.
func (s *Service) Pause(ctx context.Context, tenant string, id api.SandboxID) (state.Sandbox, error) {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Running {
		return state.Sandbox{}, notRunning(sb)
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return state.Sandbox{}, err
	}
	got, err := node.Pause(ctx, id, nodeapi.PauseRequest{})
	if api.CodeOf(err) == api.CodeUnsupported {
		// The node cannot make checkpoints: the processes stand still in its memory instead.
		got, err = node.Pause(ctx, id, nodeapi.PauseRequest{Depth: nodeapi.DepthFrozen})
	}
	if api.IsNotFound(err) {
		return state.Sandbox{}, notFound(id)
	}
	if err != nil {
		return state.Sandbox{}, fmt.Errorf("pause sandbox %s: %w", id, err)
	}
	return s.paused(ctx, sb.Node, got)
}

// paused records a node's report that a sandbox is paused.
func (s *Service) paused(ctx context.Context, node api.NodeID, got nodeapi.Sandbox) (state.Sandbox, error) {
	at := s.cfg.Now().UTC()
	if got.Pause != nil && !got.Pause.At.IsZero() {
		at = got.Pause.At.UTC()
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxPaused{ID: got.ID, Node: node, At: at})
	return r.Sandbox, stateError(got.ID, err)
}

// Resume implements API.
func (s *Service) Resume(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	if err := s.checkTimeout(d); err != nil {
		return state.Sandbox{}, err
	}
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Paused {
		return state.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s is %s, not paused", id, sb.State)
	}
	return s.resume(ctx, sb, d)
}

// Wake implements API. However many ask at a time, the sandbox is resumed once: the others find it running.
func (s *Service) Wake(ctx context.Context, id api.SandboxID) (state.Sandbox, error) {
	defer s.locks.lock(id)()
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return state.Sandbox{}, stateError(id, err)
	}
	if sb.State == state.Running {
		return sb, nil
	}
	if sb.State != state.Paused || !sb.Lifecycle.AutoResume {
		return state.Sandbox{}, notRunning(sb)
	}
	return s.resume(ctx, sb, sb.Timeout)
}

// resume lets a paused sandbox go on for d. Called with its lock held. The node resumes first: a service that dies before
// it is recorded leaves a running sandbox that the reconciler records.
func (s *Service) resume(ctx context.Context, sb state.Sandbox, d time.Duration) (state.Sandbox, error) {
	if d <= 0 {
		d = s.cfg.DefaultTimeout
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return state.Sandbox{}, err
	}
	now := s.cfg.Now().UTC()
	end := now.Add(d)
	if _, err := node.Resume(ctx, sb.ID, nodeapi.ResumeRequest{Deadline: end}); err != nil {
		if api.IsNotFound(err) {
			return state.Sandbox{}, notFound(sb.ID)
		}
		return state.Sandbox{}, fmt.Errorf("resume sandbox %s: %w", sb.ID, err)
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxResumed{
		ID: sb.ID, Node: sb.Node, At: now, EndAt: end, MaxEnd: now.Add(s.cfg.MaxLifetime), Timeout: d,
	})
	if errors.Is(err, state.ErrState) && r.Sandbox.State == state.Running {
		err = nil // the reconciler has seen it run first
	}
	return r.Sandbox, stateError(sb.ID, err)
}
