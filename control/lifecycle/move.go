package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	drainEvery    = 2 * time.Second
	parallelMoves = 4
	awaitEvery    = 50 * time.Millisecond
	// quietTime is how long requests that are under way when a sandbox begins to move may take to end: what takes longer, as streams do, is
	// cut off and comes again.
	quietTime = 2 * time.Second
	// moveTimeout bounds the checkpoint of a sandbox that moves, and its way into the store.
	moveTimeout = 10 * time.Minute
)

// Drain moves sandboxes away from the nodes that operators, here or of the scheduler, want to be left, and has nothing new placed on nodes
// that take no work, until ctx ends. One server does it at a time.
func (s *Service) Drain(ctx context.Context) {
	told := map[api.NodeID]bool{}
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left, err := s.draining(ctx)
		if err == nil {
			err = s.fence(ctx, told)
		}
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Logger.Debug("nodes that are to be left are not known", "error", err)
			}
			continue
		}
		if len(left) > 0 {
			s.leave(ctx, left)
		}
		s.settle(ctx, left)
	}
}

// leave moves what runs on some nodes. What is paused there needs no move: its stored copy comes back elsewhere.
func (s *Service) leave(ctx context.Context, left []api.NodeID) {
	var g errgroup.Group
	g.SetLimit(parallelMoves)
	for _, node := range left {
		for _, sb := range s.on(node) {
			g.Go(func() error {
				if err := s.Move(ctx, sb.ID, left); err != nil && ctx.Err() == nil {
					s.cfg.Logger.Warn("sandbox stays on a node that drains", "sandbox", sb.ID, "node", node, "error", err)
				}
				return nil
			})
		}
	}
	_ = g.Wait() // each has logged its own failure
}

// on returns the sandboxes that run on a node, or are on their way from it.
func (s *Service) on(node api.NodeID) []state.Sandbox {
	live, err := s.cfg.State.Live()
	if err != nil {
		s.cfg.Logger.Error("records cannot be read", "error", err)
		return nil
	}
	var out []state.Sandbox
	for _, sb := range live {
		if sb.Node == node && (sb.State == state.Running || sb.State == state.Paused && sb.Moving) {
			out = append(out, sb)
		}
	}
	return out
}

// Move has a running sandbox go on on another node than those that are to be left: the same id, processes, memory, files and tokens, and
// the same deadline. Requests to it wait meanwhile. One that cannot be moved goes on where it is.
func (s *Service) Move(ctx context.Context, id api.SandboxID, left []api.NodeID) error {
	was, err := s.move(ctx, id, left)
	if err == nil {
		s.forgetCopy(ctx, was)
	}
	return err
}

// move returns the sandbox as it was in its copy, or none where that is the sandbox yet.
func (s *Service) move(ctx context.Context, id api.SandboxID, left []api.NodeID) (was state.Sandbox, err error) {
	defer s.locks.lock(id)()
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return was, stateError(id, err)
	}
	begin := s.cfg.Now()
	packed := begin
	bring := s.elsewhere
	switch {
	case sb.State == state.Running:
		if sb, err = s.pack(ctx, sb, left); err != nil {
			return was, fmt.Errorf("move sandbox %s: %w", id, err)
		}
		packed = s.cfg.Now()
	case sb.State == state.Paused && sb.Moving:
		bring = s.back
	default:
		return was, nil // it changed meanwhile
	}
	failpoint.At("move.recorded")
	on, err := bring(ctx, sb, sb.EndAt, KeepMemory, append([]api.NodeID{sb.Node}, left...)...)
	if err != nil && !errors.Is(err, errGivenUp) {
		// Its node has it yet.
		if node, nodeErr := s.cfg.Fleet.Client(sb.Node); nodeErr == nil {
			if _, backErr := node.Resume(context.WithoutCancel(ctx), id, nodeapi.ResumeRequest{Deadline: sb.EndAt}); backErr == nil {
				return was, errors.Join(err, s.resumed(ctx, sb, sb.Node))
			}
		}
	}
	if err != nil {
		return was, err
	}
	failpoint.At("move.unrecorded")
	s.cfg.Logger.Info("sandbox moved", "sandbox", id, "was", sb.Node, "node", on, "packed", packed.Sub(begin), "unpacked", s.cfg.Now().Sub(packed))
	return sb, s.resumed(ctx, sb, on)
}

func (s *Service) resumed(ctx context.Context, sb state.Sandbox, on api.NodeID) error {
	_, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxResumed{
		ID: sb.ID, Node: on, At: s.cfg.Now().UTC(), EndAt: sb.EndAt, MaxEnd: sb.MaxEndAt, Timeout: sb.Timeout,
	})
	if errors.Is(err, state.ErrState) {
		err = nil // the reconciler has seen it run first
	}
	return stateError(sb.ID, err)
}

// pack checkpoints a running sandbox into the store that its node shares, and records that it is on its way. On error it runs as before.
func (s *Service) pack(ctx context.Context, sb state.Sandbox, left []api.NodeID) (state.Sandbox, error) {
	store := s.storeOf(sb.Node)
	if store == "" {
		return sb, api.Errorf(http.StatusConflict, api.CodeUnsupported, "node %s makes no checkpoints", sb.Node)
	}
	if len(s.holders(store, append([]api.NodeID{sb.Node}, left...)...)) == 0 {
		return sb, noHolder()
	}
	if devices := placement.Rules(sb.Where).Placement().Devices; len(devices) > 0 {
		return sb, api.Errorf(http.StatusConflict, nodeapi.CodeUncheckpointable, "it has devices (%s), which no checkpoint holds", devices[0].Name)
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return sb, err
	}
	// From here on requests wait, on every server: what its node answers in between is not that it is not there.
	r, err := s.cfg.State.Apply(ctx, &state.SandboxMove{ID: sb.ID, Moving: true})
	if err != nil {
		return sb, stateError(sb.ID, err)
	}
	sb = r.Sandbox
	failpoint.At("move.told")
	quiet, enough := context.WithTimeout(ctx, quietTime)
	s.cfg.Quiet(quiet, sb.ID)
	enough()
	within, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	copied := api.NewSnapshotID()
	got, err := node.Pause(within, sb.ID, nodeapi.PauseRequest{Wait: true, Store: copied, Tenant: sb.Tenant})
	if err != nil {
		_, stayErr := s.stays(ctx, sb) // what could not be stored is paused all the same
		return sb, errors.Join(err, stayErr)
	}
	failpoint.At("move.packed")
	at := s.cfg.Now().UTC()
	if got.Pause != nil && !got.Pause.At.IsZero() {
		at = got.Pause.At.UTC()
	}
	r, err = s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxPaused{
		ID: sb.ID, Node: sb.Node, At: at, Stored: copied, StoredIn: store, Moving: true,
	})
	return r.Sandbox, stateError(sb.ID, err)
}

// stays has a sandbox that was about to move go on where it is, and records it. Where its node cannot be asked it is about to move still: it may have been paused
// for that, and nobody else would let it go on. Called with its lock held, so nobody moves it.
func (s *Service) stays(ctx context.Context, sb state.Sandbox) (state.Sandbox, error) {
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err == nil {
		_, err = node.Resume(context.WithoutCancel(ctx), sb.ID, nodeapi.ResumeRequest{Deadline: sb.EndAt})
	}
	if err != nil && !api.IsNotFound(err) {
		return sb, fmt.Errorf("sandbox %s was about to move, and does not go on yet: %w", sb.ID, err)
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxMove{ID: sb.ID})
	if errors.Is(err, state.ErrState) {
		err = nil // the reconciler has seen it paused, which the next turn of the drain goes on from
	}
	return r.Sandbox, stateError(sb.ID, err)
}

// awaitMove returns when a sandbox is not on its way to another node, where this server is not the one that moves it: the lock which is
// held over a move is the leader's.
func (s *Service) awaitMove(ctx context.Context, id api.SandboxID) error {
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for !s.cfg.State.Leads() {
		if sb, err := s.cfg.State.Sandbox(id); err != nil || !sb.Moving {
			return stateError(id, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// settle lets what was to leave a node that is not to be left any more go on there: the drain was called off, or a service died in the
// midst of a move.
func (s *Service) settle(ctx context.Context, left []api.NodeID) {
	live, err := s.cfg.State.Live()
	if err != nil {
		s.cfg.Logger.Error("records cannot be read", "error", err)
		return
	}
	for _, sb := range live {
		if sb.Moving && !slices.Contains(left, sb.Node) {
			if err := s.settleOne(ctx, sb.ID, left); err != nil && ctx.Err() == nil {
				s.cfg.Logger.Warn("sandbox that was on its way does not go on yet", "sandbox", sb.ID, "node", sb.Node, "error", err)
			}
		}
	}
}

func (s *Service) settleOne(ctx context.Context, id api.SandboxID, left []api.NodeID) error {
	defer s.locks.lock(id)()
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil || !sb.Moving || slices.Contains(left, sb.Node) {
		return stateError(id, err)
	}
	switch sb.State {
	case state.Running:
		_, err = s.stays(ctx, sb)
	case state.Paused:
		on, err := s.arrived(ctx, sb)
		if err == nil && on == "" {
			on, sb.EndAt, err = s.resumeOn(ctx, sb, sb.EndAt, KeepMemory)
		}
		if err == nil {
			err = s.resumed(ctx, sb, on)
		}
		if err == nil && on != sb.Node {
			s.forgetCopy(ctx, sb)
		}
		return err
	}
	return err
}

// MoveTo has a running sandbox go on on one other node, as Move does.
func (s *Service) MoveTo(ctx context.Context, id api.SandboxID, to api.NodeID) error {
	var others []api.NodeID
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Self.ID != to && n.Self.ID != "" {
			others = append(others, n.Self.ID)
		}
	}
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return stateError(id, err)
	}
	if sb.State != state.Running || sb.Node == to {
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s on node %s", id, sb.State, sb.Node)
	}
	if err := s.Move(ctx, id, others); err != nil {
		return err
	}
	if sb, err = s.cfg.State.Sandbox(id); err == nil && sb.Node != to {
		err = api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s changed meanwhile: it is %s on node %s", id, sb.State, sb.Node)
	}
	return stateError(id, err)
}
