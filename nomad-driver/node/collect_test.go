package node

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestCollect_removesOldCopiesThatNobodyKnows has all kinds of snapshots in a real store.
func TestCollect_removesOldCopiesThatNobodyKnows(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	tree := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(tree, "memory"), make([]byte, 3*chunk.Page), 0o600))
	put := func(tenant string, copied bool, age time.Duration) api.SnapshotID {
		id := api.NewSnapshotID()
		_, err := n.snapshots.Put(t.Context(), tenant, string(id), snapshotMeta{Version: snapshotMetaVersion, Snapshot: nodeapi.Snapshot{
			ID: id, Tenant: tenant, Sandbox: api.NewSandboxID(), Copy: copied, CreatedAt: time.Now().Add(-age).UTC(),
		}}, chunk.Root{Name: rootImages, Dir: tree})
		must.NoError(t, err)
		return id
	}
	old := 2 * nodeapi.CopyGrace
	stray, known, young, asked, foreign := put("a", true, old), put("a", true, old), put("a", true, time.Minute), put("a", false, old), put("b", true, old)
	got, err := n.client.CollectSnapshots(t.Context(), nodeapi.CollectRequest{Tenant: "a", Keep: []api.SnapshotID{known}})
	must.NoError(t, err)
	must.Eq(t, nodeapi.Collected{Copies: 1}, got)
	for id, tenant := range map[api.SnapshotID]string{known: "a", young: "a", asked: "a", foreign: "b"} {
		_, err := n.client.GetSnapshot(t.Context(), tenant, id)
		must.NoError(t, err)
	}
	_, err = n.client.GetSnapshot(t.Context(), "a", stray)
	must.True(t, api.IsNotFound(err))

	_, err = n.client.CollectSnapshots(t.Context(), nodeapi.CollectRequest{Tenant: "a", Keep: []api.SnapshotID{"../x"}})
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	must.ErrorContains(t, err, "keep")
}
