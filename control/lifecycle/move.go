package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	drainEvery    = 2 * time.Second
	parallelMoves = 4
	// moveTimeout bounds the checkpoint of a sandbox that moves, and its way into the store.
	moveTimeout = 10 * time.Minute
)

// Drain moves sandboxes away from the nodes that the placer says are to be left, until ctx ends. One server does it at a time.
func (s *Service) Drain(ctx context.Context) {
	drainer, ok := s.cfg.Placer.(placement.Drainer)
	if !ok {
		return
	}
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		left, err := drainer.Draining(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Logger.Debug("nodes that drain are not known", "error", err)
			}
			continue
		}
		if len(left) > 0 {
			s.leave(ctx, left)
		}
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
	defer s.locks.lock(id)()
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return stateError(id, err)
	}
	switch {
	case sb.State == state.Running:
		if sb, err = s.pack(ctx, sb, left); err != nil {
			return fmt.Errorf("move sandbox %s: %w", id, err)
		}
	case sb.State != state.Paused || !sb.Moving:
		return nil // it changed meanwhile
	}
	on, err := s.elsewhere(ctx, sb, sb.EndAt, KeepMemory, append([]api.NodeID{sb.Node}, left...)...)
	if err != nil && !errors.Is(err, errGivenUp) {
		// Its node has it yet.
		if node, nodeErr := s.cfg.Fleet.Client(sb.Node); nodeErr == nil {
			if _, backErr := node.Resume(context.WithoutCancel(ctx), id, nodeapi.ResumeRequest{Deadline: sb.EndAt}); backErr == nil {
				return errors.Join(err, s.resumed(ctx, sb, sb.Node))
			}
		}
	}
	if err != nil {
		return err
	}
	return s.resumed(ctx, sb, on)
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
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return sb, err
	}
	within, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	copied := api.NewSnapshotID()
	got, err := node.Pause(within, sb.ID, nodeapi.PauseRequest{Wait: true, Store: copied, Tenant: sb.Tenant})
	if err != nil {
		// What could not be stored is paused all the same.
		if _, backErr := node.Resume(context.WithoutCancel(ctx), sb.ID, nodeapi.ResumeRequest{Deadline: sb.EndAt}); backErr != nil && !api.IsNotFound(backErr) {
			err = errors.Join(err, backErr)
		}
		return sb, err
	}
	at := s.cfg.Now().UTC()
	if got.Pause != nil && !got.Pause.At.IsZero() {
		at = got.Pause.At.UTC()
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), &state.SandboxPaused{
		ID: sb.ID, Node: sb.Node, At: at, Stored: copied, StoredIn: store, Moving: true,
	})
	return r.Sandbox, stateError(sb.ID, err)
}
