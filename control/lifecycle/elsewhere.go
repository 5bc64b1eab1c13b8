package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// errGivenUp tells that a sandbox may not be where it was any more: its stored copy is what it comes back from.
var errGivenUp = errors.New("its old place is given up")

// canMove reports whether another node can bring a paused sandbox back.
func (s *Service) canMove(sb state.Sandbox) bool { return sb.Stored != "" && sb.StoredIn != "" }

// gone reports whether the directory knows for sure that a node does not work. One that merely does not answer may have the sandbox
// running: nobody else may.
func (s *Service) gone(id api.NodeID) bool {
	if !s.cfg.Fleet.Stale().IsZero() {
		return false
	}
	gone := true
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Self.ID == id {
			gone = gone && !n.Connected && n.Entry.Status == health.Critical
		}
	}
	return gone
}

// holder returns the node at which a snapshot can be had: prefer, or else, of those with the same store, the one with most room.
func (s *Service) holder(prefer api.NodeID, store string) (api.NodeID, error) {
	if n, ok := s.cfg.Fleet.Node(prefer); ok && n.Connected {
		return prefer, nil
	}
	others := s.holders(store)
	if len(others) == 0 {
		return "", noHolder()
	}
	return others[0], nil
}

func noHolder() error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "no other node that answers has the snapshot store")
}

// holders returns the nodes with a snapshot store, those with most room first, without those that are to be left.
func (s *Service) holders(store string, left ...api.NodeID) []api.NodeID {
	if store == "" {
		return nil
	}
	var have []fleet.Node
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Status.State.TakesWork() && n.Self.SnapshotStore == store && !slices.Contains(left, n.Self.ID) {
			have = append(have, n)
		}
	}
	room := func(n fleet.Node) float64 { return 1 - float64(n.Sandboxes)/float64(max(1, n.Self.MaxSandbox)) }
	slices.SortStableFunc(have, func(a, b fleet.Node) int { return cmp.Compare(room(b), room(a)) })
	var out []api.NodeID
	for _, n := range have {
		out = append(out, n.Self.ID)
	}
	return out
}

// fit returns the first of the holders of a sandbox's copy that can restore it. Where there is none, the error says why of each.
func (s *Service) fit(ctx context.Context, sb state.Sandbox, left []api.NodeID) (api.NodeID, error) {
	var whys []error
	for _, id := range s.holders(sb.StoredIn, left...) {
		node, err := s.cfg.Fleet.Client(id)
		if err == nil {
			var sn nodeapi.Snapshot
			if sn, err = node.GetSnapshot(ctx, sb.Tenant, sb.Stored); err == nil && sn.Unfit != "" {
				err = api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "%s", sn.Unfit)
			}
		}
		if err == nil {
			return id, nil
		}
		whys = append(whys, fmt.Errorf("node %s: %w", id, err))
	}
	if len(whys) == 0 {
		return "", noHolder()
	}
	return "", errors.Join(whys...)
}

// storeOf returns the snapshot store of a node; empty: it has none that another node knows, as far as can be told.
func (s *Service) storeOf(id api.NodeID) string {
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Self.ID == id {
			return n.Self.SnapshotStore
		}
	}
	return ""
}

// forgetCopy removes the stored copy of a sandbox that is recorded to be deleted, or to run on another node than the copy came from. Not before: until
// then the copy is the sandbox.
func (s *Service) forgetCopy(ctx context.Context, sb state.Sandbox) {
	if !s.canMove(sb) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
	defer cancel()
	at, err := s.holder(sb.Node, sb.StoredIn)
	if err == nil {
		var node *nodeapi.Client
		if node, err = s.cfg.Fleet.Client(at); err == nil {
			err = node.DeleteSnapshot(ctx, sb.Tenant, sb.Stored)
		}
	}
	if err != nil && !api.IsNotFound(err) {
		s.cfg.Logger.Warn("stored copy of a sandbox that does not need it stays", "sandbox", sb.ID, "snapshot", sb.Stored, "error", err)
	}
}

// arrived returns the node on which a paused sandbox has come back, or is about to, because somebody who died, or lost the lead, had placed it there
// and not recorded that. What it has done since is in no copy, so nobody may end it to begin again. Empty: there is no such node. It waits for what is on
// its way. Called with its lock held.
func (s *Service) arrived(ctx context.Context, sb state.Sandbox) (api.NodeID, error) {
	within, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, startTimeout(sb.ID, s.cfg.StartTimeout))
	defer cancel()
	tick := time.NewTicker(awaitEvery)
	defer tick.Stop()
	for {
		on, waits, err := s.placedElsewhere(within, sb)
		if err != nil {
			return "", fmt.Errorf("%w: where sandbox %s is: %w", errGivenUp, sb.ID, ContextCause(within, err))
		}
		if on != "" {
			return s.await(within, sb, on)
		}
		if !waits {
			return "", nil
		}
		select {
		case <-within.Done():
			return "", ctx.Err() // for want of room, most likely: another place is looked for
		case <-tick.C:
		}
	}
}

// await waits for the report of a sandbox that somebody else has placed on a node. Empty: it does not come.
func (s *Service) await(ctx context.Context, sb state.Sandbox, on api.NodeID) (api.NodeID, error) {
	waiter := s.cfg.Fleet.AwaitOn(sb.ID, on)
	defer waiter.Close()
	found, err := Report(ctx, s.cfg.Placer, sb.ID, waiter)
	if err == nil && found.Sandbox.State != nodeapi.StateRunning {
		err = fmt.Errorf("it is %s there", found.Sandbox.State)
	}
	if err != nil {
		s.cfg.Logger.Warn("sandbox that was placed on another node did not come back there", "sandbox", sb.ID, "node", on, "error", ContextCause(ctx, err))
		return "", nil
	}
	if node, err := s.cfg.Fleet.Client(on); err == nil {
		s.publishAgain(ctx, sb, node)
	}
	s.cfg.Logger.Info("sandbox has come back on another node", "sandbox", sb.ID, "was", sb.Node, "node", on)
	return on, nil
}

// placedElsewhere returns the node, other than that of its record, on which a sandbox is or is about to be; waits is whether it is placed, but on no
// node yet.
func (s *Service) placedElsewhere(ctx context.Context, sb state.Sandbox) (on api.NodeID, waits bool, err error) {
	for _, f := range s.cfg.Fleet.Find(sb.ID) {
		// A paused one is what an earlier move has left, and is being ended.
		if f.Node != sb.Node && f.Connected && (f.Sandbox.State == nodeapi.StateStarting || f.Sandbox.State == nodeapi.StateRunning) {
			return f.Node, false, nil
		}
	}
	placed, err := s.cfg.Placer.List(ctx)
	if err != nil {
		return "", false, err
	}
	for _, p := range placed {
		switch {
		case p.ID != sb.ID || p.State == placement.Ended || p.Node == sb.Node:
		case p.Node != "":
			return p.Node, false, nil
		default:
			waits = waits || p.State == placement.Pending
		}
	}
	return "", waits, nil
}

// back brings a paused sandbox back on another node, as elsewhere does, where that has not happened already.
func (s *Service) back(ctx context.Context, sb state.Sandbox, end time.Time, keep Keep, left ...api.NodeID) (api.NodeID, error) {
	if on, err := s.arrived(ctx, sb); on != "" || err != nil {
		return on, err
	}
	return s.elsewhere(ctx, sb, end, keep, left...)
}

// elsewhere brings a paused sandbox back on another node, from its stored copy: the same id, tokens, processes and files. The old
// placement ends first, so that it is never there twice. Called with its lock held.
func (s *Service) elsewhere(ctx context.Context, sb state.Sandbox, end time.Time, keep Keep, left ...api.NodeID) (api.NodeID, error) {
	fail := func(err error) (api.NodeID, error) {
		return "", fmt.Errorf("bring sandbox %s back on another node than %s: %w", sb.ID, sb.Node, err)
	}
	if keep == KeepFiles {
		return fail(api.Errorf(http.StatusConflict, api.CodeConflict, "only with its memory"))
	}
	owner, err := s.tenantOf(sb.Tenant)
	if err != nil {
		return fail(err)
	}
	on, err := s.fit(ctx, sb, left)
	if err != nil {
		return fail(err)
	}
	want := request(sb, CreateParams{templateOf: ownTemplates(owner)})
	want.Deadline = end
	want.Restore = &nodeapi.Restore{Snapshot: sb.Stored, Tenant: sb.Tenant, Same: true}
	if want.Network, err = networkOf(sb, owner, s.cfg.Secrets); err != nil {
		return fail(err)
	}
	within, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, startTimeout(sb.ID, s.cfg.StartTimeout))
	defer cancel()
	if err := s.cfg.Placer.Stop(within, sb.ID); err != nil {
		return fail(fmt.Errorf("%w: %w", errGivenUp, ContextCause(within, err))) // the placer may do it yet
	}
	failpoint.At("move.stopped")
	waiter := s.cfg.Fleet.AwaitOn(sb.ID, on)
	defer waiter.Close()
	err = s.cfg.Placer.Place(within, placement.Request{Tenant: sb.Tenant, Dedicated: owner.Isolation.Compute == state.Dedicated, Node: want, On: on, Rules: placement.Rules(sb.Where)})
	failpoint.At("move.placed")
	if err == nil {
		var found fleet.Found
		if found, err = Report(within, s.cfg.Placer, sb.ID, waiter); err == nil && found.Sandbox.State != nodeapi.StateRunning {
			err = endedEarly(found.Sandbox)
		}
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
		defer cancel()
		// Also on its node: one that came too late must not be taken for one that has come.
		if stopErr := s.stop(clean, state.Sandbox{ID: sb.ID, Node: on}); stopErr != nil {
			s.cfg.Logger.Warn("sandbox that did not come back is not cleaned up yet", "sandbox", sb.ID, "error", stopErr)
		}
		return fail(fmt.Errorf("%w: %w", errGivenUp, ContextCause(within, err)))
	}
	if node, err := s.cfg.Fleet.Client(on); err == nil {
		s.publishAgain(ctx, sb, node)
	}
	s.cfg.Logger.Info("sandbox came back on another node", "sandbox", sb.ID, "was", sb.Node, "node", on)
	return on, nil
}
