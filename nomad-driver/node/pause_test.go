package node

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// counter is a process that counts in a file, with the number in its memory: a second copy, or one that lost time, would show. It has as much memory as is copied
// beside a dump.
const counter = `cd /home/user; exec 3>>begun; ln begun count; rm begun; printf -v keep %09000000d 0; n=0; while :; do n=$((n+1)); echo $n >&3; sleep 0.02; done`

// startCounter starts one and returns its pid.
func (d *daemon) startCounter(sb nodeapi.Sandbox) guest.ProcessID {
	d.t.Helper()
	s, err := d.client.Exec(d.t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", counter}}})
	must.NoError(d.t, err)
	defer s.Close()
	return s.Process.PID
}

// counts checks that the counter has counted without a gap and without a number twice, and goes on. It may not have begun yet: a pause can come before.
func (d *daemon) counts(sb nodeapi.Sandbox) {
	d.t.Helper()
	out, code := d.exec(sb, "bash", "-c", `a=$(tail -n1 /home/user/count 2>/dev/null); a=${a:-0}; for i in $(seq 3000); do b=$(tail -n1 /home/user/count 2>/dev/null); [ "${b:-0}" -gt "$a" ] && cat /home/user/count && exit; sleep 0.01; done; exit 1`)
	if code != 0 {
		state, _ := d.exec(sb, "bash", "-c", `ls -l /home/user; tail -n2 /home/user/count; cat /proc/[0-9]*/stat`)
		must.Eq(d.t, 0, code, must.Sprint("the counter stands still: ", state))
	}
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		must.Eq(d.t, strconv.Itoa(i+1), line, must.Sprint("the counter stood still, ran twice or lost a number"))
	}
	must.StrContains(d.t, out, "\n")
}

func pauseTo(depth nodeapi.Depth) nodeapi.PauseRequest {
	return nodeapi.PauseRequest{Depth: depth, Wait: true}
}

func TestReal_pause(t *testing.T) {
	criu := sandboxtest.CRIU(t)
	d := startDaemon(t, "-criu", criu)
	sb := d.create()
	d.startCounter(sb)
	terminal, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "--norc"}, TTY: true, Stdin: true, KillOnDetach: true}})
	must.NoError(t, err)
	defer terminal.Close()
	_, err = terminal.Write([]byte("x=kept-$((6*7)); echo set-$x\n"))
	must.NoError(t, err)
	for said := ""; !strings.Contains(said, "set-kept-42"); {
		f, err := terminal.Recv()
		must.NoError(t, err)
		_, data, err := frame.Output(f.Payload)
		must.NoError(t, err)
		said += string(data)
	}
	shell := terminal.Process.PID

	for _, depth := range []nodeapi.Depth{nodeapi.DepthFrozen, nodeapi.DepthCheckpointed, nodeapi.DepthFrozen, nodeapi.DepthCheckpointed} {
		paused, err := d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
		must.NoError(t, err)
		must.Eq(t, nodeapi.StatePaused, paused.State)
		must.Eq(t, depth, paused.Pause.Depth)
		_, err = d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"true"}}})
		must.Eq(t, http.StatusConflict, api.StatusOf(err))
		if depth == nodeapi.DepthCheckpointed {
			must.ErrorIs(t, unix.Kill(sb.PID, 0), unix.ESRCH, must.Sprint("memory is not given back"))
		}
		again, err := d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
		must.NoError(t, err)
		must.Eq(t, paused.Pause.At, again.Pause.At)

		asked := time.Now()
		deadline := asked.Add(time.Hour).UTC().Round(time.Second)
		sb, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{Deadline: deadline})
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, sb.State)
		late := sb.Deadline.Sub(deadline)
		must.Between(t, 0, late, time.Since(asked), must.Sprint("what the resume took is not the sandbox's time"))
		must.Nil(t, sb.Pause)
		d.counts(sb)
	}

	// The terminal is the same, and its output is replayed.
	back, err := d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: shell}})
	must.NoError(t, err)
	defer back.Close()
	_, err = back.Write([]byte("echo is-$x; exit 4\n"))
	must.NoError(t, err)
	var out bytes.Buffer
	exit, err := back.Copy(&out, nil)
	must.NoError(t, err)
	must.Eq(t, 4, exit.Code)
	must.StrContains(t, out.String(), "x=kept-")
	must.StrContains(t, out.String(), "is-kept-42")

	// A paused sandbox can be deleted.
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	d.noLeftovers()
}

func TestReal_pauseInTheBackground(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	id := api.NewSnapshotID()
	paused, err := d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{Store: id, Tenant: "a"})
	must.NoError(t, err)
	must.Eq(t, nodeapi.DepthFrozen, paused.Pause.Depth)
	waitUntil(t, "checkpoint", func() bool {
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, "", got.Pause.Failure)
		return got.Pause.Snapshot == id
	})
	stored, err := d.client.GetSnapshot(t.Context(), "a", id)
	must.NoError(t, err)
	must.Eq(t, sb.ID, stored.Sandbox)
	again, err := d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{Store: id, Tenant: "a", StoreOnly: true})
	must.NoError(t, err)
	must.Eq(t, paused.Pause.At, again.Pause.At, must.Sprint("what is stored is not stored again"))
	d.kill()
	d.start()
	// Two at once resume it once.
	errs := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := d.client.Resume(context.Background(), sb.ID, nodeapi.ResumeRequest{})
			errs <- err
		}()
	}
	must.NoError(t, <-errs)
	must.NoError(t, <-errs)
	d.counts(sb)
	waitUntil(t, "the end of the stored copy", func() bool { // it is another sandbox's past by now
		_, err := d.client.GetSnapshot(t.Context(), "a", id)
		return api.IsNotFound(err)
	})
	_, err = d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{Store: api.NewSnapshotID(), StoreOnly: true})
	must.Eq(t, nodeapi.CodeNotPaused, api.CodeOf(err), must.Sprint("nothing is paused for the store's sake"))
	// A resume in the middle of a checkpoint is a thaw.
	_, err = d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{})
	must.NoError(t, err)
	_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	d.counts(sb)
}
