package node

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func restoreRequest(s api.SnapshotID, tenant string) nodeapi.CreateRequest {
	req := createRequest()
	req.Template = ""
	req.Restore = &nodeapi.Restore{Snapshot: s, Tenant: tenant}
	return req
}

func TestReal_snapshot(t *testing.T) {
	criu := sandboxtest.CRIU(t)
	shared := t.TempDir()
	args := []string{"-criu", criu, "-snapshot-dir", shared + "/store", "-snapshot-key", shared + "/key"}
	d := startDaemon(t, args...)
	sb := d.create()
	d.startCounter(sb)
	_, code := d.exec(sb, "bash", "-c", "echo mine > ~/file; ln ~/file ~/same; ln -s file ~/link; rm -f /etc/marker; mkdir ~/dir; chmod 700 ~/dir; head -c 300000 /dev/urandom > ~/dir/data; echo memory > /tmp/memory")
	must.Eq(t, 0, code)
	sum, _ := d.exec(sb, "bash", "-c", "cat ~/dir/data | wc -c; stat -c '%a %u %h' ~/dir ~/file; ls /etc/marker 2>&1; cat ~/link /tmp/memory; cat ~/dir/data")

	id := api.NewSnapshotID()
	snap, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	must.Positive(t, snap.Frozen)
	must.Positive(t, snap.StoredBytes)
	d.counts(sb) // it goes on
	again, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID(), Tenant: "a"})
	must.NoError(t, err)
	t.Logf("bytes %d, stored %d, then %d; frozen %s", snap.Bytes, snap.StoredBytes, again.StoredBytes, snap.Frozen)
	must.Less(t, snap.StoredBytes, again.StoredBytes)
	_, err = d.client.GetSnapshot(t.Context(), "b", id)
	must.Eq(t, http.StatusNotFound, api.StatusOf(err), must.Sprint("another tenant's"))
	list, err := d.client.Snapshots(t.Context(), "a")
	must.NoError(t, err)
	must.Len(t, 2, list)

	ids := map[string]bool{}
	for range 3 {
		copied, err := d.client.Create(t.Context(), restoreRequest(id, "a"))
		must.NoError(t, err)
		got, _ := d.exec(copied, "bash", "-c", "cat ~/dir/data | wc -c; stat -c '%a %u %h' ~/dir ~/file; ls /etc/marker 2>&1; cat ~/link /tmp/memory; cat ~/dir/data")
		must.Eq(t, sum, got)
		d.counts(copied)
		name, _ := d.exec(copied, "bash", "-c", "cat /etc/machine-id; hostname")
		machine, host, _ := strings.Cut(name, "\n")
		must.Eq(t, string(copied.ID)+"\n", host)
		must.False(t, ids[machine])
		ids[machine] = true
	}

	// A manifest that somebody has changed is not even read.
	names, err := filepath.Glob(shared + "/store/t/*/manifests/" + string(again.ID))
	must.NoError(t, err)
	must.Len(t, 1, names)
	b, err := os.ReadFile(names[0])
	must.NoError(t, err)
	b[len(b)/2] ^= 1
	must.NoError(t, os.WriteFile(names[0], b, 0o600))
	_, err = d.client.Create(t.Context(), restoreRequest(again.ID, "a"))
	must.Eq(t, http.StatusUnprocessableEntity, api.StatusOf(err))
	must.NoError(t, d.client.DeleteSnapshot(t.Context(), "a", again.ID))

	// The same on another node.
	other := startDaemon(t, append(args, "-id-range-base", "500000000")...)
	moved, err := other.client.Create(t.Context(), restoreRequest(id, "a"))
	must.NoError(t, err)
	got, _ := other.exec(moved, "bash", "-c", "cat ~/dir/data | wc -c; stat -c '%a %u %h' ~/dir ~/file; ls /etc/marker 2>&1; cat ~/link /tmp/memory; cat ~/dir/data")
	must.Eq(t, sum, got)
	other.counts(moved)
	must.NoError(t, d.client.DeleteSnapshot(t.Context(), "a", id))
	_, err = d.client.Create(t.Context(), restoreRequest(id, "a"))
	must.Eq(t, http.StatusNotFound, api.StatusOf(err))
}
