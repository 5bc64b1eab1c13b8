package reconcile

import (
	"context"
	"fmt"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
)

// snapshots finishes or forgets the snapshots that a service was making which has died: what its node has stored is ready, and what it
// has not, once no call can be at it any more, is forgotten. Those that it was making copies from go.
func (r *Reconciler) snapshots(ctx context.Context) {
	all, err := r.cfg.State.Snapshots("")
	if err != nil {
		r.log.Error("snapshots cannot be read", "error", err)
		return
	}
	for _, sn := range all {
		if ctx.Err() != nil {
			return
		}
		if sn.Creator == r.cfg.Run || r.cfg.Now().Sub(sn.CreatedAt) < r.cfg.StopGrace {
			continue // its call is alive, or may be just about to end
		}
		settle := r.snapshot
		switch {
		case sn.State == state.SnapshotMaking:
		case sn.Passing:
			settle = r.endFork
		default:
			continue
		}
		if err := settle(ctx, sn); err != nil && ctx.Err() == nil {
			r.log.Warn("snapshot of an earlier service is not settled yet", "snapshot", sn.ID, "error", err)
		}
	}
}

// endFork removes the snapshot of a fork whose service has died, once nothing is being made from it.
func (r *Reconciler) endFork(ctx context.Context, sn state.Snapshot) error {
	live, err := r.cfg.State.Live()
	if err != nil || slices.ContainsFunc(live, func(sb state.Sandbox) bool { return sb.Origin == sn.ID && sb.State == state.Starting }) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	node, err := r.cfg.Fleet.Client(sn.Node)
	if err != nil {
		return err
	}
	if err := node.DeleteSnapshot(ctx, sn.Tenant, sn.ID); err != nil && !api.IsNotFound(err) {
		return err
	}
	_, err = r.cfg.State.Apply(ctx, &state.SnapshotDelete{Tenant: sn.Tenant, ID: sn.ID, Force: true})
	if err == nil {
		r.log.Info("snapshot of a fork that an earlier service did not end is removed", "snapshot", sn.ID)
	}
	return err
}

func (r *Reconciler) snapshot(ctx context.Context, sn state.Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	now := r.cfg.Now().UTC()
	late := now.Sub(sn.CreatedAt) >= r.cfg.SnapshotTimeout
	node, err := r.cfg.Fleet.Client(sn.Node)
	if err != nil {
		if f := factsOfNode(sn.Node, byID(r.cfg.Fleet.Nodes()), !r.cfg.Fleet.Stale().IsZero()); !late || !f.gone {
			return err
		}
		_, err := r.cfg.State.Apply(ctx, &state.SnapshotEnd{
			ID: sn.ID, State: state.SnapshotFailed, At: now, Reason: fmt.Sprintf("node %s, which was making it, is gone", sn.Node),
		})
		return err
	}
	made, err := node.GetSnapshot(ctx, sn.Tenant, sn.ID)
	switch {
	case err == nil:
		_, err = r.cfg.State.Apply(ctx, &state.SnapshotEnd{ID: sn.ID, State: state.SnapshotReady, At: now, Bytes: made.Bytes, Stored: made.StoredBytes})
		if err == nil {
			r.log.Info("snapshot of an earlier service is ready", "snapshot", sn.ID)
		}
	case api.IsNotFound(err) && late:
		if _, err = r.cfg.State.Apply(ctx, &state.SnapshotDelete{Tenant: sn.Tenant, ID: sn.ID, Force: true}); err == nil {
			r.log.Info("snapshot that an earlier service did not make is forgotten", "snapshot", sn.ID)
		}
	case api.IsNotFound(err):
		err = nil // another service may be making it
	}
	return err
}

func byID(list []fleet.Node) map[api.NodeID]fleet.Node {
	out := map[api.NodeID]fleet.Node{}
	for _, n := range list {
		if n.Self.ID != "" && !out[n.Self.ID].Connected {
			out[n.Self.ID] = n
		}
	}
	return out
}
