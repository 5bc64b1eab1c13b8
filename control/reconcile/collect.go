package reconcile

import (
	"context"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// collectTimeout bounds what one call removes of one tenant.
const collectTimeout = 10 * time.Minute

// collectAgain collects from time to time until ctx ends, beside the passes: a store may be far away, and large.
func (r *Reconciler) collectAgain(ctx context.Context) {
	tick := time.NewTicker(r.cfg.CollectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.collect(ctx)
		}
	}
}

// collect has each snapshot store rid of what no snapshot needs: one of the nodes with a store does it for all. What a sandbox is paused in
// is kept, recorded or about to be.
func (r *Reconciler) collect(ctx context.Context) {
	at := map[string]api.NodeID{}
	for _, n := range r.cfg.Fleet.Nodes() {
		if store := n.Self.SnapshotStore; n.Connected && store != "" && at[store] == "" {
			at[store] = n.Self.ID
		}
	}
	if len(at) == 0 {
		return
	}
	tenants, err := r.cfg.State.Tenants()
	if err != nil {
		r.log.Error("tenants cannot be read", "error", err)
		return
	}
	live, err := r.cfg.State.Live()
	if err != nil {
		r.log.Error("records cannot be read", "error", err)
		return
	}
	keep := map[string][]api.SnapshotID{}
	for _, sb := range live {
		if sb.Stored != "" {
			keep[sb.Tenant] = append(keep[sb.Tenant], sb.Stored)
		}
		if sb.State == state.Paused { // its copy may be there, and the report of that not
			keep[sb.Tenant] = append(keep[sb.Tenant], copyID(sb.ID, sb.PausedAt))
		}
	}
	for store, id := range at {
		node, err := r.cfg.Fleet.Client(id)
		if err != nil {
			continue // the next time
		}
		for _, t := range tenants {
			if ctx.Err() != nil {
				return
			}
			r.collectOf(ctx, node, store, nodeapi.CollectRequest{Tenant: t.ID, Keep: keep[t.ID]})
		}
	}
}

func (r *Reconciler) collectOf(ctx context.Context, node *nodeapi.Client, store string, req nodeapi.CollectRequest) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	got, err := node.CollectSnapshots(ctx, req)
	switch {
	case err != nil && ctx.Err() == nil:
		r.log.Warn("snapshot store is not collected yet", "store", store, "tenant", req.Tenant, "error", err)
	case got != nodeapi.Collected{}:
		r.log.Info("snapshot store collected", "store", store, "tenant", req.Tenant, "copies", got.Copies, "packs", got.Packs)
	}
}
