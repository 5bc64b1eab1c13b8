package node

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// keyOf has versions whose secrets are made of their numbers.
func keyOf(versions ...int) (k nodeapi.SnapshotKey) {
	for _, v := range versions {
		secret := make([]byte, 32)
		secret[0] = byte(v)
		k.Versions = append(k.Versions, nodeapi.SnapshotKeyVersion{Version: v, Secret: secret})
	}
	return k
}

func TestSnapshotKey_ofTheControlService(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.SnapshotKeyGiven = true
	n := startNode(t, cfg, nil)
	tree := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(tree, "memory"), make([]byte, 3*chunk.Page), 0o600))
	put := func() (api.SnapshotID, error) {
		id := api.NewSnapshotID()
		_, err := n.snapshots.Put(t.Context(), "a", string(id), snapshotMeta{Version: snapshotMetaVersion, Snapshot: nodeapi.Snapshot{ID: id, Tenant: "a"}},
			chunk.Root{Name: rootImages, Dir: tree})
		return id, err
	}
	read := func(id api.SnapshotID) error {
		_, err := n.client.GetSnapshot(t.Context(), "a", id)
		return err
	}
	_, err := put()
	must.ErrorIs(t, err, chunk.ErrUnavailable, must.Sprint("before it was given one"))
	must.Eq(t, http.StatusServiceUnavailable, apiError(err).Code)
	must.FileNotExists(t, filepath.Join(cfg.StateDir, "snapshot.key"))

	must.NoError(t, n.client.PutSnapshotKey(t.Context(), keyOf(1)))
	one, err := put()
	must.NoError(t, err)
	must.NoError(t, n.client.PutSnapshotKey(t.Context(), keyOf(1, 2)))
	two, err := put()
	must.NoError(t, err)
	must.NoError(t, read(one), must.Sprint("a rotation takes nothing away"))
	must.NoError(t, n.client.PutSnapshotKey(t.Context(), keyOf(2)))
	must.Eq(t, http.StatusUnprocessableEntity, api.StatusOf(read(one)), must.Sprint("its version is revoked"))
	must.NoError(t, read(two))

	for name, bad := range map[string]nodeapi.SnapshotKey{
		"none":         {},
		"version zero": keyOf(0),
		"short":        {Versions: []nodeapi.SnapshotKeyVersion{{Version: 3, Secret: []byte("short")}}},
	} {
		err := n.client.PutSnapshotKey(t.Context(), bad)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(name))
		must.ErrorContains(t, err, "versions")
	}
	must.NoError(t, read(two), must.Sprint("what is refused changes nothing"))
}

func TestSnapshotKey_aNodeWithAFileTakesNone(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	must.Eq(t, http.StatusConflict, api.StatusOf(n.client.PutSnapshotKey(t.Context(), keyOf(1))))
}
