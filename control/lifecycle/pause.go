package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Keep is how much of a sandbox a pause keeps, or a resume takes up again.
type Keep string

// What is kept.
const (
	KeepMemory Keep = "memory" // processes, memory and files
	KeepFiles  Keep = "files"  // the files: a resume boots the sandbox anew
)

// Pause implements API. The node stops the processes first and says so, then it is recorded: a service that dies between
// the two leaves a paused sandbox that the reconciler records.
func (s *Service) Pause(ctx context.Context, tenant string, id api.SandboxID, keep Keep) (state.Sandbox, error) {
	defer s.locks.lock(id)()
	sb, err := s.live(tenant, id)
	if err != nil {
		return state.Sandbox{}, err
	}
	if sb.State != state.Running {
		return state.Sandbox{}, notRunning(sb)
	}
	if sb.Leaving() {
		if sb, err = s.stays(ctx, sb); err != nil {
			return state.Sandbox{}, err
		}
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return state.Sandbox{}, err
	}
	var req nodeapi.PauseRequest
	if keep == KeepFiles {
		req.Depth = nodeapi.DepthFiles
	}
	got, err := node.Pause(ctx, id, req)
	if keep == KeepMemory && api.CodeOf(err) == api.CodeUnsupported {
		// The node cannot make checkpoints: the processes stand still in its memory instead.
		got, err = node.Pause(ctx, id, nodeapi.PauseRequest{Depth: nodeapi.DepthFrozen})
	}
	if api.IsNotFound(err) {
		return state.Sandbox{}, notFound(id)
	}
	if err != nil {
		return state.Sandbox{}, fmt.Errorf("pause sandbox %s: %w", id, err)
	}
	failpoint.At("pause.unrecorded")
	sb, err = s.paused(ctx, sb.Node, got)
	failpoint.At("pause.told")
	return sb, err
}

// paused records a node's report that a sandbox is paused.
func (s *Service) paused(ctx context.Context, node api.NodeID, got nodeapi.Sandbox) (state.Sandbox, error) {
	at := s.cfg.Now().UTC()
	if got.Pause != nil && !got.Pause.At.IsZero() {
		at = got.Pause.At.UTC()
	}
	files := got.Pause != nil && got.Pause.Depth == nodeapi.DepthFiles
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxPaused{ID: got.ID, Node: node, At: at, Files: files})
	return r.Sandbox, stateError(got.ID, err)
}

// Resume implements API.
func (s *Service) Resume(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep Keep) (state.Sandbox, error) {
	if err := s.boundTimeout(tenant, d); err != nil {
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
	return s.resume(ctx, sb, d, keep)
}

// Wake implements API. However many ask at a time, the sandbox is resumed once: the others find it running.
func (s *Service) Wake(ctx context.Context, id api.SandboxID) (state.Sandbox, error) {
	if err := s.awaitMove(ctx, id); err != nil {
		return state.Sandbox{}, err
	}
	defer s.locks.lock(id)()
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return state.Sandbox{}, stateError(id, err)
	}
	if sb.Leaving() {
		return s.stays(ctx, sb)
	}
	if sb.State == state.Running {
		return sb, nil
	}
	if !sb.Wakes() {
		return state.Sandbox{}, notRunning(sb)
	}
	return s.resume(ctx, sb, sb.Timeout, KeepMemory)
}

// resume lets a paused sandbox go on for d. Called with its lock held. What it will use is asked for first, then the node resumes: a
// service that dies before that is recorded leaves a running sandbox that the reconciler records.
func (s *Service) resume(ctx context.Context, sb state.Sandbox, d time.Duration, keep Keep) (state.Sandbox, error) {
	owner, err := s.tenantOf(sb.Tenant)
	if err != nil {
		return state.Sandbox{}, err
	}
	if owner.Suspended {
		return state.Sandbox{}, api.Errorf(http.StatusForbidden, api.CodeSuspended, "tenant %s is suspended: sandbox %s is not resumed", owner.ID, sb.ID)
	}
	if d <= 0 {
		d = cmp.Or(owner.Defaults.Timeout, s.cfg.DefaultTimeout)
	}
	change, err := reshaped(sb, owner)
	if err != nil {
		return state.Sandbox{}, err
	}
	if change != nil {
		r, err := s.cfg.State.Apply(ctx, change)
		if err != nil {
			return state.Sandbox{}, stateError(sb.ID, err)
		}
		sb = r.Sandbox
	}
	_, drop, err := s.hold(ctx, sb, state.Hold{Active: true})
	if err != nil {
		return state.Sandbox{}, err
	}
	failpoint.At("resume.held")
	now := s.cfg.Now().UTC()
	end := now.Add(d)
	on, end, err := s.resumeOn(ctx, sb, end, keep)
	if err != nil {
		drop()
		return state.Sandbox{}, err
	}
	failpoint.At("resume.unrecorded")
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxResumed{
		ID: sb.ID, Node: on, At: now, EndAt: end, MaxEnd: now.Add(s.cfg.MaxLifetime), Timeout: d,
	})
	if errors.Is(err, state.ErrState) && r.Sandbox.State == state.Running {
		err = nil // the reconciler has seen it run first
	}
	failpoint.At("resume.told")
	if err == nil && on != sb.Node {
		s.forgetCopy(ctx, sb)
	}
	return r.Sandbox, stateError(sb.ID, err)
}

// resumeOn has a paused sandbox go on where it is, or, where that node is gone or has lost it, where its stored copy can be had. It
// returns the node that it is on, and its deadline there: end and the time that it took.
func (s *Service) resumeOn(ctx context.Context, sb state.Sandbox, end time.Time, keep Keep) (api.NodeID, time.Time, error) {
	elsewhere := func() (api.NodeID, time.Time, error) {
		on, err := s.back(ctx, sb, end, keep)
		return on, end, err
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		if s.canMove(sb) && s.gone(sb.Node) {
			return elsewhere()
		}
		return "", end, err
	}
	network, err := s.networkOf(sb) // it may have changed while it slept
	if err != nil {
		return "", end, err
	}
	view, err := node.Resume(ctx, sb.ID, nodeapi.ResumeRequest{Deadline: end, Fresh: keep == KeepFiles, Network: network})
	switch {
	case err == nil && view.Deadline.After(end):
		return sb.Node, view.Deadline, nil
	case err == nil:
		return sb.Node, end, nil
	case api.IsNotFound(err) && s.canMove(sb):
		return elsewhere()
	case api.IsNotFound(err):
		return "", end, notFound(sb.ID)
	}
	return "", end, fmt.Errorf("resume sandbox %s: %w", sb.ID, err)
}
