package node

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// TestReal_aDeviceIsNotCheckpointed is about what is refused, with its reason, before anything stops.
func TestReal_aDeviceIsNotCheckpointed(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	node := filepath.Join(t.TempDir(), "fake")
	must.NoError(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))))
	must.NoError(t, os.Chmod(node, 0o666))
	device := func(req *nodeapi.CreateRequest) {
		req.Devices = []nodeapi.Device{{Host: node, Path: "/dev/gpu0", Access: "rw"}}
	}
	sb := d.create(device)
	must.Eq(t, "/dev/gpu0", sb.Devices[0].Path)
	d.startCounter(sb)

	snapshot := func() error {
		_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID(), Tenant: "default"})
		return err
	}
	pause := func(depth nodeapi.Depth) func() error {
		return func() error {
			_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
			return err
		}
	}
	for name, try := range map[string]func() error{"checkpoint": pause(nodeapi.DepthCheckpointed), "files": pause(nodeapi.DepthFiles), "snapshot": snapshot} {
		err := try()
		must.Eq(t, nodeapi.CodeUncheckpointable, api.AsError(err).ErrorCode, must.Sprint(name, ": ", err))
		must.ErrorContains(t, err, "/dev/gpu0", must.Sprint(name))
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, got.State, must.Sprint(name))
	}
	// Standing still is no checkpoint.
	must.NoError(t, pause(nodeapi.DepthFrozen)())
	must.Eq(t, nodeapi.CodeUncheckpointable, api.AsError(pause(nodeapi.DepthCheckpointed)()).ErrorCode)
	_, err := d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	d.counts(sb)

	// A daemon that comes later knows it, too.
	d.kill()
	d.start()
	must.Eq(t, nodeapi.CodeUncheckpointable, api.AsError(pause(nodeapi.DepthCheckpointed)()).ErrorCode)
	_, code := d.exec(sb, "bash", "-c", "exec 3<>/dev/gpu0")
	must.Eq(t, 0, code)

	req := createRequest()
	device(&req)
	req.OnDeadline = nodeapi.DeadlinePauseFiles
	_, err = d.client.Create(t.Context(), req)
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	must.ErrorContains(t, err, "on_deadline")
}
