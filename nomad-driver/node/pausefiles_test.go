package node

import (
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// A pause of the files alone: what was written is there after the boot, what ran is not, and a daemon that is killed changes neither.
func TestReal_pauseOfFilesBootsAnew(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Env = map[string]string{"KEPT": "yes"} })
	files := func(want string) {
		t.Helper()
		out, code := d.exec(sb, "bash", "-c", "cat /home/user/note; echo $KEPT; hostname; ls /tmp")
		must.Eq(t, 0, code)
		must.Eq(t, want+"\nyes\n"+sb.Hostname+"\n", out)
		list, err := d.client.Processes(t.Context(), sb.ID)
		must.NoError(t, err)
		for _, p := range list {
			must.False(t, p.Exit == nil && len(p.Argv) > 0 && p.Argv[0] == "sleep", must.Sprint("a process is left"))
		}
	}
	write := func(text string) {
		t.Helper()
		_, code := d.exec(sb, "bash", "-c", "echo "+text+" > /home/user/note; echo gone > /tmp/gone")
		must.Eq(t, 0, code)
		s, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"sleep", "1000"}}})
		must.NoError(t, err)
		must.NoError(t, s.Close())
	}
	resume := func(req nodeapi.ResumeRequest) {
		t.Helper()
		var err error
		sb, err = d.client.Resume(t.Context(), sb.ID, req)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, sb.State)
	}

	write("first")
	paused, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthFiles))
	must.NoError(t, err)
	must.Eq(t, nodeapi.DepthFiles, paused.Pause.Depth)
	must.ErrorIs(t, unix.Kill(sb.PID, 0), unix.ESRCH, must.Sprint("its processes go on"))
	d.kill()
	d.start()
	resume(nodeapi.ResumeRequest{})
	files("first")

	// Whatever depth it is paused to, a resume may ask for a boot.
	for _, depth := range []nodeapi.Depth{nodeapi.DepthFrozen, nodeapi.DepthCheckpointed} {
		write(string(depth))
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
		must.NoError(t, err)
		resume(nodeapi.ResumeRequest{Fresh: true})
		files(string(depth))
	}

	// A checkpoint can be given up for the files.
	write("deeper")
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthFiles))
	must.NoError(t, err)
	resume(nodeapi.ResumeRequest{})
	files("deeper")

	// A running one goes the same way at its deadline, where it was made so.
	due := d.create(func(r *nodeapi.CreateRequest) {
		r.OnDeadline, r.Deadline = nodeapi.DeadlinePauseFiles, time.Now().Add(time.Second)
	})
	waitUntil(t, "the pause at the deadline", func() bool {
		got, err := d.client.Get(t.Context(), due.ID)
		must.NoError(t, err)
		return got.State == nodeapi.StatePaused && got.Pause.Depth == nodeapi.DepthFiles
	})

	_, err = d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{Depth: nodeapi.DepthFiles, Store: api.NewSnapshotID()})
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	own := d.create(func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"sleep", "1000"}} })
	_, err = d.client.Pause(t.Context(), own.ID, pauseTo(nodeapi.DepthFiles))
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	got, err := d.client.Get(t.Context(), own.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.StateRunning, got.State)
}
