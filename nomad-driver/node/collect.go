package node

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Collect removes from the store what a tenant's snapshots do not need, and copies of paused sandboxes that nobody knows: of a resume or an
// end that a kill cut off before the copy was removed.
func (n *Node) Collect(ctx context.Context, req nodeapi.CollectRequest) (nodeapi.Collected, error) {
	var out nodeapi.Collected
	list, err := n.snapshots.List(ctx, req.Tenant)
	if err != nil {
		return out, err
	}
	for _, m := range list {
		s, err := snapshotOf(m)
		if err != nil {
			return out, err
		}
		if !s.Copy || time.Since(s.CreatedAt) < nodeapi.CopyGrace || slices.Contains(req.Keep, s.ID) {
			continue
		}
		if err := n.forgetSnapshot(ctx, req.Tenant, m.ID); err != nil {
			return out, err
		}
		n.log.Info("stored copy that nobody knows is removed", "snapshot", s.ID, "sandbox", s.Sandbox, "created_at", s.CreatedAt)
		out.Copies++
	}
	out.Packs, err = n.snapshots.Sweep(ctx, req.Tenant)
	return out, err
}

// maxKeep bounds what one request names: a tenant's paused sandboxes.
const maxKeep = 100_000

func (n *Node) collectSnapshots(w http.ResponseWriter, r *http.Request) error {
	var req nodeapi.CollectRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if len(req.Tenant) > maxTenant {
		return invalid("tenant: %d bytes, at most %d", len(req.Tenant), maxTenant)
	}
	if len(req.Keep) > maxKeep {
		return invalid("keep: %d ids, at most %d", len(req.Keep), maxKeep)
	}
	for _, id := range req.Keep {
		if _, err := api.ParseSnapshotID(string(id)); err != nil {
			return invalid("keep: %v", err)
		}
	}
	out, err := n.Collect(r.Context(), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}
