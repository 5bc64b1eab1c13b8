package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// settled has a sandbox that is paused, as far as it is whole, go on.
func (d *daemon) settled(sb nodeapi.Sandbox) {
	d.t.Helper()
	got, err := d.client.Get(d.t.Context(), sb.ID)
	must.NoError(d.t, err)
	if got.State == nodeapi.StatePaused {
		_, err := d.client.Resume(d.t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(d.t, err)
	} else {
		must.Eq(d.t, nodeapi.StateRunning, got.State)
	}
	d.counts(sb)
}

// CRIU is killed at some moment of a restore. The daemon says so, and the sandbox is paused and whole. (A CRIU that is killed in a dump can leave its
// code in the processes: nothing of the platform does that, see the DESIGN of package checkpoint.)
func TestFaults_criuIsKilledInARestore(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	note := filepath.Join(d.dir, "s/checkpoints", string(sb.ID), criuFile)
	kills, missed := 0, 0
	for kills < *faults {
		must.Less(t, 20**faults+20, missed, must.Sprint("CRIU is never met at work"))
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.NoError(t, err)
		_ = os.Remove(note)
		done := make(chan error, 1)
		go func() {
			_, err := d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
			done <- err
		}()
		killed := killCRIU(note, done)
		err = <-done
		if err == nil { // it had done its work
			missed++
			d.settled(sb)
			continue
		}
		must.True(t, killed, must.Sprintf("%v", err))
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StatePaused, got.State)
		d.settled(sb)
		kills++
	}
}

// killCRIU waits for the note of a CRIU at work and kills it a little later. It reports whether it has.
func killCRIU(note string, done <-chan error) bool {
	for len(done) == 0 {
		var n criuNote
		b, err := os.ReadFile(note)
		if err != nil || json.Unmarshal(b, &n) != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		time.Sleep(rand.N(60 * time.Millisecond)) // the moment is what is tested
		if s, err := procstat.Of(n.PID); err != nil || s.Started() != n.Start {
			return false
		}
		return unix.Kill(n.PID, unix.SIGKILL) == nil
	}
	return false
}

// A disk that fills up in the middle of a dump: the pause fails, says why, leaves nothing, and the sandbox goes on.
func TestFaults_theDiskFillsUpInADump(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	home := filepath.Join(d.dir, "s/checkpoints")
	small := func(size string) {
		t.Helper()
		must.NoError(t, unix.Mount("full", home, "tmpfs", 0, "mode=0700,size="+size))
	}
	small("256k")
	t.Cleanup(func() { _ = unix.Unmount(home, unix.MNT_DETACH) })
	for range 2 {
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.Error(t, err)
		must.StrContains(t, err.Error(), "checkpoint sandbox "+string(sb.ID))
		left, err := filepath.Glob(filepath.Join(home, string(sb.ID), "*", "*"))
		must.NoError(t, err)
		must.SliceEmpty(t, left)
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, got.State)
		d.counts(sb)
	}
	_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID()})
	must.Error(t, err)
	d.counts(sb)
	// In the background it stays frozen, and says why.
	_, err = d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{})
	must.NoError(t, err)
	waitUntil(t, "the failure", func() bool {
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		return got.Pause != nil && !got.Pause.Checkpointing && got.Pause.Failure != ""
	})
	must.NoError(t, unix.Unmount(home, unix.MNT_DETACH))
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err, must.Sprint("with room it goes on"))
	d.settled(sb)
}

// What was changed, cut or taken away in the store is never restored; nothing of a half sandbox is left, and the original goes on.
func TestFaults_theStoreIsDamaged(t *testing.T) {
	shared := t.TempDir()
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t), "-snapshot-dir", shared+"/store", "-snapshot-key", shared+"/key")
	sb := d.create()
	d.startCounter(sb)
	id := api.NewSnapshotID()
	_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	packs, err := filepath.Glob(shared + "/store/t/*/packs/*")
	must.NoError(t, err)
	must.SliceNotEmpty(t, packs)
	manifests, err := filepath.Glob(shared + "/store/t/*/manifests/*")
	must.NoError(t, err)
	refused := func(what, path string, want int, damage func(b []byte) []byte) {
		t.Helper()
		good, err := os.ReadFile(path)
		must.NoError(t, err)
		if bad := damage(append([]byte(nil), good...)); bad != nil {
			must.NoError(t, os.WriteFile(path, bad, 0o600))
		} else {
			must.NoError(t, os.Remove(path))
		}
		req := restoreRequest(id, "a")
		_, err = d.client.Create(t.Context(), req)
		must.Eq(t, want, api.StatusOf(err), must.Sprintf("%s: %v", what, err))
		_, err = d.client.Get(t.Context(), req.ID)
		must.Eq(t, http.StatusNotFound, api.StatusOf(err), must.Sprintf("%s left half a sandbox", what))
		must.NoError(t, os.WriteFile(path, good, 0o600))
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	gone := func([]byte) []byte { return nil }
	refused("a flipped pack", packs[0], http.StatusUnprocessableEntity, flip)
	refused("a cut pack", packs[0], http.StatusUnprocessableEntity, cut)
	refused("a missing pack", packs[0], http.StatusNotFound, gone)
	refused("a flipped manifest", manifests[0], http.StatusUnprocessableEntity, flip)
	refused("a cut manifest", manifests[0], http.StatusUnprocessableEntity, cut)
	_, err = d.client.Create(t.Context(), restoreRequest(id, "b"))
	must.Eq(t, http.StatusNotFound, api.StatusOf(err), must.Sprint("another tenant's"))
	req := restoreRequest(id, "a")
	req.ID = sb.ID
	_, err = d.client.Create(t.Context(), req)
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("its id is taken"))
	d.counts(sb)
	copied, err := d.client.Create(t.Context(), restoreRequest(id, "a"))
	must.NoError(t, err)
	d.counts(copied)
}

// What no checkpoint can hold is told before anything stops, by name, and the sandbox goes on.
func TestFaults_whatCannotBeCheckpointed(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	p, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"sleep", "1000"}}})
	must.NoError(t, err)
	release := seize(t, d.hostPID(sb, "sleep"))
	_, err = d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{})
	must.Eq(t, nodeapi.CodeUncheckpointable, api.CodeOf(err))
	must.ErrorContains(t, err, "(sleep) has a debugger attached")
	must.ErrorContains(t, err, fmt.Sprintf("process %d ", p.PID))
	_, err = d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID()})
	must.Eq(t, nodeapi.CodeUncheckpointable, api.CodeOf(err))
	got, err := d.client.Get(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.StateRunning, got.State)
	d.counts(sb)
	// Frozen it can be kept all the same.
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthFrozen))
	must.NoError(t, err)
	d.settled(sb)
	release()
	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	d.settled(sb)
}

// hostPID returns the pid on the host of the child of PID 1 that has a name, once it has it. Each thread of PID 1 has children.
func (d *daemon) hostPID(sb nodeapi.Sandbox, name string) (pid int) {
	d.t.Helper()
	waitUntil(d.t, "process "+name, func() bool {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", sb.PID))
		must.NoError(d.t, err)
		for _, list := range lists {
			b, err := os.ReadFile(list)
			if err != nil {
				continue // the thread has ended
			}
			for _, f := range strings.Fields(string(b)) {
				if comm, err := os.ReadFile("/proc/" + f + "/comm"); err == nil && strings.TrimSpace(string(comm)) == name {
					pid, err = strconv.Atoi(f)
					must.NoError(d.t, err)
					return true
				}
			}
		}
		return false
	})
	return pid
}

// seize has a thread of this process trace another one until release, or the end of the test.
func seize(t *testing.T, pid int) (release func()) {
	t.Helper()
	seized, let, ended := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		onThread(func() {
			err := unix.PtraceSeize(pid)
			seized <- err
			if err == nil {
				<-let // with the thread its tracing ends
			}
		})
	}()
	must.NoError(t, <-seized)
	once := false
	release = func() {
		if !once {
			once = true
			close(let)
			<-ended
		}
		waitUntil(t, "the end of the tracing", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			return errors.Is(err, os.ErrNotExist) || strings.Contains(string(b), "TracerPid:\t0\n")
		})
	}
	t.Cleanup(release)
	return release
}
