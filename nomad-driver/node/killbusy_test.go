package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// TestFaults_aKillWhileMuchIsUnderWay kills the daemon, or one of its CRIUs, at any moment, while sandboxes are paused, resumed and copied side by side: what
// is under way for the one must not become another's loss. Each of them is there afterwards, and has counted without a gap.
func TestFaults_aKillWhileMuchIsUnderWay(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	const boxes, killsOfARound = 4, 6
	all := make([]*busy, boxes)
	for i := range all {
		all[i] = &busy{daemon: d, sb: d.create(), outcomes: map[string]int{}}
		d.startCounter(all[i].sb)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	for _, b := range all {
		wg.Go(func() { b.work(ctx) })
	}
	killed := map[string]int{}
	for range *faults * killsOfARound {
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond) // any moment
		if rand.IntN(3) > 0 {
			killed[theDaemon]++
			d.kill()
			d.start()
		} else if d.killACRIU() {
			killed[theCRIU]++
		}
	}
	stop()
	wg.Wait()
	t.Logf("killed: %v", killed)
	defer func() {
		for _, b := range all {
			if t.Failed() {
				t.Logf("%s:\n%s", b.sb.ID, strings.Join(b.history, "\n"))
			}
		}
	}()
	for _, b := range all {
		t.Logf("%s: %v", b.sb.ID, b.outcomes)
		got, err := d.client.Get(t.Context(), b.sb.ID)
		b.told("at the end: %+v %v", got, err)
		must.NoError(t, err)
		must.NoError(t, b.err)
		must.NoError(t, b.runs(t.Context()))
	}
	ended := map[api.SandboxID]bool{}
	for _, b := range all {
		d.counts(b.sb)
		for _, id := range b.ended {
			ended[id] = true
		}
	}
	copies, err := d.client.List(t.Context())
	must.NoError(t, err)
	for _, c := range copies {
		if c.State == nodeapi.StateStopped && ended[c.ID] {
			continue // its delete was cut off
		}
		must.Eq(t, nodeapi.StateRunning, c.State, must.Sprint(c.ID))
		d.counts(c)
	}
}

// killACRIU kills one of the daemon's, and reports whether there was one.
func (d *daemon) killACRIU() bool {
	d.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	must.NoError(d.t, err)
	var children []string
	for _, list := range tasks {
		b, _ := os.ReadFile(list) // of a thread that may have ended
		children = append(children, strings.Fields(string(b))...)
	}
	for _, i := range rand.Perm(len(children)) {
		if line, err := os.ReadFile("/proc/" + children[i] + "/cmdline"); err != nil || !strings.Contains(string(line), "\x00swrk\x00") {
			continue
		}
		pid, err := strconv.Atoi(children[i])
		must.NoError(d.t, err)
		return unix.Kill(pid, unix.SIGKILL) == nil
	}
	return false
}

// busy is a sandbox with which something is done all the time.
type busy struct {
	*daemon
	sb       nodeapi.Sandbox
	err      error           // what must not have happened
	ended    []api.SandboxID // copies whose delete was asked for
	outcomes map[string]int
	history  []string
}

func (b *busy) work(ctx context.Context) {
	for ctx.Err() == nil && b.err == nil {
		what, err := b.step(ctx)
		if !errors.Is(err, unix.ECONNREFUSED) {
			b.told("%s: %v", what, err)
		}
		switch {
		case err == nil:
			b.outcomes[what]++
		case ctx.Err() != nil:
		case errors.Is(err, nodeapi.ErrUnreachable):
			b.outcomes[what+" cut off"]++
			time.Sleep(10 * time.Millisecond) // it is being started again
		default:
			b.outcomes[what+" failed"]++
			// A CRIU that is killed takes what it was doing with it. What has not to do with that is a fault.
			if !strings.Contains(err.Error(), "criu") {
				b.err = fmt.Errorf("%s sandbox %s: %w", what, b.sb.ID, err)
			}
		}
	}
}

// told notes what has happened, for who looks at a failure.
func (b *busy) told(format string, args ...any) {
	b.history = append(b.history, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// step does one thing with the sandbox.
func (b *busy) step(ctx context.Context) (what string, err error) {
	switch rand.IntN(8) {
	case 0:
		id := api.NewSnapshotID()
		if _, err := b.client.Snapshot(ctx, b.sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"}); err != nil {
			return "snapshot", b.paused(err)
		}
		c, err := b.client.Create(ctx, restoreRequest(id, "a"))
		if err == nil && rand.IntN(4) > 0 {
			b.ended = append(b.ended, c.ID)
			return "copy and end", b.client.Delete(ctx, c.ID)
		}
		return "copy", err
	case 1:
		_, err = b.client.Pause(ctx, b.sb.ID, pauseTo(nodeapi.DepthFrozen))
		what = "freeze"
	default:
		_, err = b.client.Pause(ctx, b.sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		what = "pause"
	}
	if b.paused(err) != nil {
		return what, err
	}
	return "resume", b.runs(ctx)
}

// paused leaves out that the sandbox is paused already: by what was cut off.
func (b *busy) paused(err error) error {
	if api.StatusOf(err) == http.StatusConflict {
		return nil
	}
	return err
}

// runs has the sandbox run.
func (b *busy) runs(ctx context.Context) error {
	got, err := b.client.Get(ctx, b.sb.ID)
	if err != nil || got.State == nodeapi.StateRunning {
		return err
	}
	_, err = b.client.Resume(ctx, b.sb.ID, nodeapi.ResumeRequest{})
	return err
}
