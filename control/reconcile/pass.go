package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// parallel is how many calls to nodes and placers one pass makes at a time.
const parallel = 16

// full looks at everything: records, reports and placements.
func (r *Reconciler) full(ctx context.Context) {
	ids := map[api.SandboxID]struct{}{}
	for id := range r.marks {
		ids[id] = struct{}{}
	}
	placed := r.placements(ctx)
	for id := range placed {
		ids[id] = struct{}{}
	}
	live, err := r.cfg.State.Live()
	if err != nil {
		r.log.Error("records cannot be read", "error", err)
		return
	}
	for _, sb := range live {
		ids[sb.ID] = struct{}{}
	}
	for _, id := range r.cfg.Fleet.IDs() {
		ids[id] = struct{}{}
	}
	r.pass(ctx, slices.Sorted(maps.Keys(ids)), placed)
}

// placements returns what the placer has, or nil where it cannot be asked.
func (r *Reconciler) placements(ctx context.Context) map[api.SandboxID]placement.Placed {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	list, err := r.cfg.Placer.List(ctx)
	if err != nil {
		r.log.Warn("placements cannot be listed", "error", err)
		return nil
	}
	placed := make(map[api.SandboxID]placement.Placed, len(list))
	for _, p := range list {
		placed[p.ID] = p
	}
	return placed
}

// pass decides about some sandboxes and does it. placed is nil where the placements are not known.
func (r *Reconciler) pass(ctx context.Context, ids []api.SandboxID, placed map[api.SandboxID]placement.Placed) {
	known := r.cfg.Fleet.Nodes()
	nodes := byID(known)
	all := !slices.ContainsFunc(known, func(n fleet.Node) bool { return !n.Connected })
	stale := !r.cfg.Fleet.Stale().IsZero()
	var ends []state.End
	var asked sync.Mutex // guards missed
	var missed []state.End
	calls, _ := errgroup.WithContext(ctx)
	calls.SetLimit(parallel)
	for _, id := range ids {
		f, err := r.facts(id, placed)
		if err != nil {
			r.log.Error("record cannot be read", "sandbox", id, "error", err)
			continue
		}
		f.all = all
		if f.record != nil {
			f.node = factsOfNode(f.record.Node, nodes, stale)
		}
		a := r.cfg.decide(f, r.marks)
		if a.verb == leave {
			continue
		}
		if a.verb == end {
			ends = append(ends, a.end)
			continue
		}
		if a.verb == missing {
			calls.Go(func() error {
				if r.missing(ctx, f) {
					asked.Lock()
					defer asked.Unlock()
					missed = append(missed, a.end)
				}
				return nil
			})
			continue
		}
		tries := r.try(id)
		calls.Go(func() error {
			r.do(ctx, f, a, tries)
			return nil
		})
	}
	_ = calls.Wait() // each call logs its own failure, and the next pass repeats it
	for chunk := range slices.Chunk(append(ends, missed...), state.MaxBatch) {
		r.endAll(ctx, chunk)
	}
}

// try counts how often something was done about a sandbox without being right yet.
func (r *Reconciler) try(id api.SandboxID) int {
	m := r.marks[id]
	m.tries++
	r.marks[id] = m
	return m.tries
}

// policy names what a sandbox may reach.
func (r *Reconciler) policy(sb state.Sandbox) (string, error) {
	if sb.State != state.Running {
		return "", nil
	}
	owner, err := r.tenant(sb.Tenant)
	if err != nil {
		return "", err
	}
	want, err := lifecycle.NetworkOf(sb, owner, r.cfg.Secrets)
	if err != nil {
		return "", err
	}
	return nodeapi.PolicyDigest(want.Layers, want.Filled), nil
}

func (r *Reconciler) facts(id api.SandboxID, placed map[api.SandboxID]placement.Placed) (facts, error) {
	f := facts{now: r.cfg.Now(), id: id, listed: placed != nil}
	record, err := r.cfg.State.Sandbox(id)
	switch {
	case err == nil:
		f.record = &record
		if f.policy, err = r.policy(record); err != nil {
			return facts{}, err
		}
	case !errors.Is(err, state.ErrNotFound):
		return facts{}, err
	}
	if f.record == nil {
		switch _, err := r.cfg.State.Slot(id); {
		case err == nil:
			f.slot = true
		case !errors.Is(err, state.ErrNotFound):
			return facts{}, err
		}
	}
	for _, found := range r.cfg.Fleet.Find(id) {
		if found.Sandbox.Owner.Kind == placement.OwnerKind { // others have their own masters
			f.found = append(f.found, found)
		}
	}
	if f.record != nil {
		if last, ok := r.cfg.Fleet.Ended(f.record.Node, id); ok {
			f.last = &last
		}
	}
	if p, ok := placed[id]; ok {
		f.placed = &p
	}
	return f, nil
}
