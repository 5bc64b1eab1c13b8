package reconcile

import (
	"context"
	"crypto/sha256"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// do carries out one decision that concerns one sandbox. A failure is logged; the next pass decides anew.
func (r *Reconciler) do(ctx context.Context, f facts, a action, tries int) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	var err error
	switch a.verb {
	case adopt:
		err = r.adopt(ctx, f, a.found)
	case destroy:
		err = r.destroy(ctx, f, tries)
	case evict:
		err = r.remove(ctx, a.found)
	case deadline:
		err = r.deadline(ctx, f, a.found)
	case limits:
		err = r.limits(ctx, f, a.found)
	case network:
		err = r.network(ctx, f, a.found)
	case pause:
		err = r.pause(ctx, f, a.found)
	case resume:
		err = r.resume(ctx, f, a.found)
	case claim:
		err = r.claim(ctx, f, a.found)
	case store:
		err = r.store(ctx, f, a.found)
	case release:
		err = r.release(ctx, f, a.found)
	}
	if err != nil && ctx.Err() == nil {
		r.log.Warn("not reconciled yet", "sandbox", f.id, "error", err)
	}
}

func (r *Reconciler) adopt(ctx context.Context, f facts, found fleet.Found) error {
	enforced := lifecycle.Enforced(found.Sandbox.Limits)
	_, err := r.cfg.State.Apply(ctx, &state.SandboxRunning{
		ID: f.id, Node: found.Node, Digest: found.Sandbox.Digest, StartedAt: found.Sandbox.StartedAt.UTC(), Limits: &enforced,
	})
	if errors.Is(err, state.ErrState) {
		return nil // it changed meanwhile
	}
	if err == nil {
		r.record("sandbox.adopt", *f.record, map[string]string{"node": string(found.Node), "was": string(f.record.State)})
		r.log.Info("sandbox adopted", "sandbox", f.id, "node", found.Node, "was", f.record.State)
		r.Mark(f.id)
	}
	return err
}

// missing asks the node of a record whether it has the sandbox. Where it does, the fleet will hear of it.
func (r *Reconciler) missing(ctx context.Context, f facts) bool {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	node, err := r.cfg.Fleet.Client(f.record.Node)
	if err == nil {
		_, err = node.Get(ctx, f.id)
	}
	if err != nil && !api.IsNotFound(err) && ctx.Err() == nil {
		r.log.Warn("not reconciled yet", "sandbox", f.id, "error", err)
	}
	return api.IsNotFound(err)
}

// destroy ends a sandbox through the placer, which may need a moment. Where that did not help, its node is told directly.
func (r *Reconciler) destroy(ctx context.Context, f facts, tries int) error {
	if err := r.cfg.Placer.Stop(ctx, f.id); err != nil {
		return err
	}
	if tries == 1 {
		return nil
	}
	for _, found := range f.found {
		if err := r.remove(ctx, found); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reconciler) remove(ctx context.Context, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	if err := node.Delete(ctx, found.Sandbox.ID); err != nil && !api.IsNotFound(err) {
		return err
	}
	r.record("sandbox.evict", state.Sandbox{ID: found.Sandbox.ID, Tenant: found.Sandbox.Metadata["tenant"]}, map[string]string{"node": string(found.Node)})
	r.log.Info("sandbox removed from a node where it does not belong", "sandbox", found.Sandbox.ID, "node", found.Node)
	return nil
}

// deadline tells a node the deadline that is recorded by now.
func (r *Reconciler) deadline(ctx context.Context, f facts, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	now, err := r.cfg.State.Sandbox(f.id)
	if err != nil || now.State != state.Running {
		return nil // it changed meanwhile
	}
	_, err = node.SetDeadline(ctx, f.id, now.EndAt)
	if api.IsNotFound(err) {
		return nil
	}
	return err
}

// limits brings a node back to the limits that are recorded by now: a change reached it whose record was never written.
func (r *Reconciler) limits(ctx context.Context, f facts, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	now, err := r.cfg.State.Sandbox(f.id)
	if err != nil || now.State != state.Running {
		return nil // it changed meanwhile
	}
	want := lifecycle.NodeLimits(now)
	for _, io := range []*int64{&want.IOReadBytes, &want.IOWriteBytes, &want.IOReadOps, &want.IOWriteOps} {
		if *io == 0 {
			*io = api.Unlimited // recorded as none
		}
	}
	_, err = node.SetLimits(ctx, f.id, want)
	if api.IsNotFound(err) {
		return nil
	}
	return err
}

// release ends the hold of a change that nobody makes any more. Where the link was to change, its node is brought back to what is recorded.
func (r *Reconciler) release(ctx context.Context, f facts, found fleet.Found) error {
	now, err := r.cfg.State.Sandbox(f.id)
	if err != nil || now.Hold.Index != f.record.Hold.Index {
		return nil // it changed meanwhile
	}
	if h := now.Hold; now.State == state.Running && (h.RateIn != 0 || h.RateOut != 0) {
		node, err := r.cfg.Fleet.Client(found.Node)
		if err != nil {
			return err
		}
		if err := r.setNetwork(ctx, node, now); err != nil {
			return err
		}
	}
	_, err = r.cfg.State.Apply(ctx, &state.SandboxUnhold{ID: f.id, Index: now.Hold.Index})
	if err == nil {
		r.log.Info("what a change held that nobody makes any more is given back", "sandbox", f.id, "run", now.Hold.Run)
	}
	return err
}

// network brings a node to the network policy that is recorded by now.
func (r *Reconciler) network(ctx context.Context, f facts, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	now, err := r.cfg.State.Sandbox(f.id)
	if err != nil || now.State != state.Running {
		return nil // it changed meanwhile
	}
	return r.setNetwork(ctx, node, now)
}

func (r *Reconciler) setNetwork(ctx context.Context, node *nodeapi.Client, sb state.Sandbox) error {
	owner, err := r.tenant(sb.Tenant)
	if err != nil {
		return err
	}
	want, err := lifecycle.NetworkOf(sb, owner, r.cfg.Secrets)
	if err != nil {
		return err
	}
	if _, err := node.SetNetwork(ctx, sb.ID, *want); err != nil && !api.IsNotFound(err) {
		return err
	}
	return nil
}

// tenant returns a tenant's record. One without has no rules of its own.
func (r *Reconciler) tenant(id string) (state.Tenant, error) {
	t, err := r.cfg.State.Tenant(id)
	if errors.Is(err, state.ErrNotFound) {
		return state.Tenant{ID: id}, nil
	}
	return t, err
}

// claim gives a slot to the sandbox that it is by its record.
func (r *Reconciler) claim(ctx context.Context, f facts, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	now, err := r.cfg.State.Sandbox(f.id)
	if err != nil || now.State != state.Running {
		return nil // it changed meanwhile
	}
	owner, err := r.tenant(now.Tenant)
	if err != nil {
		return err
	}
	want, err := lifecycle.ClaimRequest(now, owner, r.cfg.Secrets)
	if err != nil {
		return err
	}
	if _, err = node.Claim(ctx, f.id, want); api.IsNotFound(err) {
		return nil
	}
	if err == nil {
		r.log.Info("slot given to the sandbox that it is", "sandbox", f.id, "node", found.Node)
	}
	return err
}

// systemUser is who does what no caller asked for.
const systemUser = "system:reconciler"

// record tells what was done about a sandbox.
func (r *Reconciler) record(action string, sb state.Sandbox, details map[string]string) {
	r.cfg.Record(audit.Event{
		Tenant: sb.Tenant, User: systemUser, Action: action, Resource: "sandbox", ResourceID: string(sb.ID), Result: audit.ResultOK, Details: details,
	})
}

// pause records that a node has paused a sandbox by itself.
func (r *Reconciler) pause(ctx context.Context, f facts, found fleet.Found) error {
	at := f.now.UTC()
	if p := found.Sandbox.Pause; p != nil && !p.At.IsZero() {
		at = p.At.UTC()
	}
	files := found.Sandbox.Pause != nil && found.Sandbox.Pause.Depth == nodeapi.DepthFiles
	c := &state.SandboxPaused{ID: f.id, Node: found.Node, At: at, Files: files}
	if p := found.Sandbox.Pause; p != nil && p.Snapshot != "" && f.node.store != "" {
		c.Stored, c.StoredIn = p.Snapshot, f.node.store
	}
	_, err := r.cfg.State.Apply(ctx, c)
	if errors.Is(err, state.ErrState) {
		return nil // it changed meanwhile
	}
	if err == nil {
		r.log.Info("sandbox paused by its node", "sandbox", f.id, "node", found.Node)
	}
	return err
}

// store has a node put a copy of a paused sandbox into the store that it shares. The node answers at once, and tells when it is there.
// The copy's id is the same however often it is asked for.
func (r *Reconciler) store(ctx context.Context, f facts, found fleet.Found) error {
	node, err := r.cfg.Fleet.Client(found.Node)
	if err != nil {
		return err
	}
	_, err = node.Pause(ctx, f.id, nodeapi.PauseRequest{
		StoreOnly: true, Store: copyID(f.id, found.Sandbox.Pause.At), Tenant: f.record.Tenant,
	})
	if code := api.CodeOf(err); api.IsNotFound(err) || code == api.CodeNotRunning || code == nodeapi.CodeNotPaused {
		return nil // it has ended, or was resumed
	}
	return err
}

// copyID names the stored copy of a sandbox that was paused at a time.
func copyID(id api.SandboxID, at time.Time) api.SnapshotID {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(string(id) + at.UTC().Format(time.RFC3339Nano)))
	out := []byte{'s'}
	for _, b := range sum[:20] {
		out = append(out, letters[int(b)%len(letters)])
	}
	return api.SnapshotID(out)
}

// resume records that a node has resumed a sandbox, with the deadline that it has there.
func (r *Reconciler) resume(ctx context.Context, f facts, found fleet.Found) error {
	now := f.now.UTC()
	end := found.Sandbox.Deadline.UTC()
	if found.Sandbox.Deadline.IsZero() {
		end = now.Add(f.record.Timeout)
	}
	maxEnd := now.Add(f.record.MaxEndAt.Sub(f.record.CreatedAt)) // the same lifetime once more, as every resume gives
	if maxEnd.Before(end) {
		maxEnd = end
	}
	_, err := r.cfg.State.Apply(ctx, &state.SandboxResumed{
		ID: f.id, Node: found.Node, At: now, EndAt: end, MaxEnd: maxEnd, Timeout: f.record.Timeout,
	})
	if errors.Is(err, state.ErrState) {
		return nil // it changed meanwhile
	}
	if err != nil {
		return err
	}
	r.log.Info("sandbox that was being resumed is recorded as running", "sandbox", f.id, "node", found.Node)
	if f.record.Stored == "" || found.Node == f.record.Node {
		return nil // a node that resumes its own forgets the copy
	}
	node, err := r.cfg.Fleet.Client(found.Node)
	if err == nil {
		err = node.DeleteSnapshot(ctx, f.record.Tenant, f.record.Stored)
	}
	if err != nil && !api.IsNotFound(err) {
		r.log.Warn("stored copy of a sandbox that runs stays", "sandbox", f.id, "snapshot", f.record.Stored, "error", err)
	}
	return nil
}

// endAll records ends in one command, then lets the placer forget those sandboxes.
func (r *Reconciler) endAll(ctx context.Context, ends []state.End) {
	if _, err := r.cfg.State.Apply(ctx, &state.SandboxEnd{Ends: ends}); err != nil {
		r.log.Warn("ends not recorded yet", "sandboxes", len(ends), "error", err)
		return
	}
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(parallel)
	for _, e := range ends {
		now, err := r.cfg.State.Sandbox(e.ID)
		if err != nil || !now.State.Ended() {
			continue // it changed before the decision reached the log, which counts for more
		}
		r.record("sandbox.end", now, map[string]string{"state": string(now.State), "reason": now.Reason, "node": string(now.Node)})
		r.log.Info("sandbox ended", "sandbox", e.ID, "state", now.State, "reason", now.Reason)
		delete(r.marks, e.ID)
		if now.State == state.Lost {
			continue // it may come back; what is left of it goes when its deadline has passed
		}
		calls.Go(func() error {
			call, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
			defer cancel()
			if err := r.cfg.Placer.Stop(call, e.ID); err != nil {
				r.log.Warn("ended sandbox not cleaned up yet", "sandbox", e.ID, "error", err)
			}
			return nil
		})
	}
	_ = calls.Wait() // each call logs its own failure
}

// purge forgets sandboxes that ended long ago.
func (r *Reconciler) purge(ctx context.Context) {
	for ctx.Err() == nil {
		ids, err := r.cfg.State.Purgeable(r.cfg.Now().Add(-r.cfg.Retention), r.cfg.MaxEnded, state.MaxBatch)
		if err != nil {
			r.log.Error("ended sandboxes cannot be read", "error", err)
			return
		}
		if len(ids) == 0 {
			return
		}
		res, err := r.cfg.State.Apply(ctx, &state.SandboxPurge{IDs: ids})
		if err != nil {
			r.log.Warn("ended sandboxes not forgotten yet", "error", err)
			return
		}
		r.cfg.Record(audit.Event{
			Action: "sandbox.forget", Resource: "sandbox", User: systemUser, Result: audit.ResultOK,
			Details: map[string]string{"sandboxes": strconv.Itoa(res.Changed)},
		})
		r.log.Debug("ended sandboxes forgotten", "sandboxes", res.Changed)
		if res.Changed == 0 || len(ids) < state.MaxBatch {
			return
		}
	}
}
