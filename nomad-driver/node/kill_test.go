package node

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

var (
	faults = flag.Int("faults", 1, "how often the tests of kills kill at each step (make faults: 100)")
	steps  = flag.String("steps", "", "kill at the steps only whose name has this in it")
)

// Who is killed.
const (
	theDaemon = "daemon"
	theCRIU   = "criu"
	theBoth   = "daemon, then criu"
)

// ways are what leads through steps, and who is killed at which of them.
var ways = []struct {
	name   string
	do     func(f *fault) error
	settle func(f *fault) // checks what the kill has left, and lets the sandbox run
	victim string
	steps  []string
}{
	{"pause", (*fault).pause, (*fault).runOn, theDaemon, []string{
		"pause.parked", "pause.frozen", "pause.recorded", "checkpoint at pre-dump", "checkpoint at network-lock", "checkpoint at post-dump", "checkpoint.dumped", "checkpoint.synced", "checkpoint.renamed", "checkpoint.recorded", "checkpoint.ended",
	}},
	{"pause", (*fault).pause, (*fault).runOn, theCRIU, []string{"criu checkpoint pre-dump", "criu checkpoint network-lock", "criu checkpoint post-dump"}},
	{"pause to the files", (*fault).pauseFiles, (*fault).bootOn, theDaemon, []string{"pause.frozen", "pause.recorded", "files.synced", "checkpoint.recorded", "checkpoint.ended"}},
	{"pause into the store", (*fault).store, (*fault).runOn, theDaemon, []string{"store.pack", "store.packed", "store.unrecorded", "store.recorded"}},
	{"thaw", (*fault).thaw, (*fault).runOn, theDaemon, []string{"resume.recorded", "resume.thawed"}},
	{"restore", (*fault).restore, (*fault).runOn, theDaemon, []string{
		"network.wired", "restore at setup-namespaces", "restore at post-setup-namespaces", "restore at post-restore", "restore at pre-resume", "restore at post-resume",
		"restore.restored", "restore.recorded", "restore.named", "restore.woken",
	}},
	{"restore", (*fault).restore, (*fault).runOn, theCRIU, []string{"criu restore setup-namespaces", "criu restore post-setup-namespaces", "criu restore post-restore", "criu restore pre-resume", "criu restore post-resume"}},
	{"restore", (*fault).restore, (*fault).runOn, theBoth, []string{"restore at post-restore", "restore at pre-resume"}},
	{"snapshot", (*fault).snapshot, (*fault).snapshotted, theDaemon, []string{
		"snapshot.frozen", "snapshot.dumped", "snapshot.copied", "snapshot.thawed", "store.pack", "store.packed", "snapshot.stored",
	}},
	{"snapshot", (*fault).snapshot, (*fault).snapshotted, theCRIU, []string{"criu checkpoint pre-dump", "criu checkpoint network-lock", "criu checkpoint post-dump"}},
	{"fork", (*fault).fork, (*fault).forked, theDaemon, []string{"fork.files", "fork.fetched", "network.wired", "restore at post-restore", "restore at pre-resume", "create.made", "create.recorded", "fork.woken"}},
	{"fork", (*fault).fork, (*fault).forked, theCRIU, []string{"criu restore setup-namespaces", "criu restore post-restore", "criu restore pre-resume"}},
	{"fork of files", (*fault).forkFiles, (*fault).forkedFiles, theDaemon, []string{"fork.files", "network.wired", "create.made", "create.recorded"}},
	{"move", (*fault).move, (*fault).moved, theDaemon, []string{"fork.files", "fork.fetched", "network.wired", "create.made", "create.recorded", "fork.woken"}},
	{"restore of much", (*fault).restore, (*fault).remembered, theDaemon, []string{"restore at pre-resume", "restore.thawed", "restore.paged", "restore.recorded", "restore.woken"}},
	{"restore of much", (*fault).restore, (*fault).remembered, theBoth, []string{"restore at pre-resume"}},
	{"restore of much", (*fault).restore, (*fault).remembered, theCRIU, []string{"criu restore post-restore", "criu restore pre-resume"}},
	{"pause with a stopped process", (*fault).pause, (*fault).stoppedStill, theDaemon, []string{"checkpoint.dumped", "checkpoint.recorded"}},
	{"pause with a stopped process", (*fault).pause, (*fault).stoppedStill, theCRIU, []string{"criu checkpoint pre-dump", "criu checkpoint network-lock", "criu checkpoint post-dump"}},
	{"restore with a stopped process", (*fault).restore, (*fault).stoppedStill, theCRIU, []string{"criu restore post-restore", "criu restore pre-resume"}},
}

// fault is a sandbox whose node is killed again and again.
type fault struct {
	*daemon
	there *daemon // the node that it moves to
	at    string  // where a failure is
	arm   string  // the file that arms a step
	sb    nodeapi.Sandbox
	sum   [sha256.Size]byte // of a file in it
	still nodeapi.Sandbox   // another one, in which nothing runs; it may not be there yet

	kill     func()         // arms the step
	killed   *daemon        // which is killed, if it is a daemon
	id       api.SnapshotID // of the snapshot under way
	copied   nodeapi.CreateRequest
	much     *paged          // what the sandbox remembers, once it has so much memory that it comes after a restore
	stopped  guest.ProcessID // a process that was stopped by a signal; 0: there is none yet
	outcomes map[string]int
}

// TestFaults_aKillAtEveryStep kills the daemon, or CRIU, at each step of each way. The sandbox is running, or paused and whole, after each: it
// has counted without a gap, runs once, is not frozen, has its file, and nothing is on the machine that belongs to nobody.
func TestFaults_aKillAtEveryStep(t *testing.T) {
	dir := t.TempDir()
	f := &fault{arm: filepath.Join(dir, "step"), outcomes: map[string]int{}}
	t.Setenv("SOULBOX_FAILPOINT", f.arm)
	binary := built(t, &killedOnce, "nomad-driver-soulbox-killed", "failpoints")
	args := []string{"-criu", sandboxtest.CRIU(t), "-network", "on", "-snapshot-dir", dir + "/store", "-snapshot-key", dir + "/key"}
	f.daemon = startDaemonOf(t, binary, networktest.New(t).Host, args...)
	f.there = startDaemonOf(t, binary, networktest.New(t).Host, append(args, "-id-range-base", "500000000")...)
	f.begin()

	var out strings.Builder
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "way\tstep\tkilled\trounds\tand then\tslowest\tlost, frozen or twice")
	defer func() { // also where a step fails: which ones went well before it
		_ = w.Flush()
		t.Logf("after kill -9:\n%s%s", out.String(), f.at)
	}()
	for _, way := range ways {
		for _, step := range way.steps {
			if !strings.Contains(way.name+": "+step, *steps) {
				continue
			}
			clear(f.outcomes)
			if strings.HasSuffix(way.name, " of much") && f.much == nil {
				f.much = &paged{daemon: f.daemon, sb: f.sb}
				f.much.remember()
			}
			if strings.HasSuffix(way.name, " with a stopped process") && f.stopped == 0 {
				f.stopOne()
			}
			f.at = "failed in: " + way.name + ", kill of " + way.victim + " at " + strings.TrimPrefix(step, "criu ")
			var slowest time.Duration
			for range *faults {
				begin := time.Now()
				f.round(step, way.victim, way.do)
				way.settle(f)
				f.whole(f.daemon, f.sb)
				slowest = max(slowest, time.Since(begin))
			}
			t.Logf("%s: %s: %d rounds went well", way.name, step, *faults) // at once: all rows take an hour
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%.1f s\t0\n", way.name, strings.TrimPrefix(step, "criu "), way.victim, *faults, words(f.outcomes), slowest.Seconds())
		}
	}
	f.at = ""
}

func words(outcomes map[string]int) string {
	var out []string
	for _, what := range []string{"running", "frozen", "on disk", "files", "not there", "there"} {
		if n := outcomes[what]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, what))
		}
	}
	return strings.Join(out, ", ")
}

// begin makes the sandbox.
func (f *fault) begin() {
	f.t.Helper()
	f.sb = f.create(func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = 2 << 30 })
	file := make([]byte, 300_000)
	_, _ = rand.Read(file)
	f.sum = sha256.Sum256(file)
	_, err := f.client.WriteFile(f.t.Context(), f.sb.ID, "/home/user/file", bytes.NewReader(file), nodeapi.FileOptions{User: "user"})
	must.NoError(f.t, err)
	f.startCounter(f.sb)
}

// round has one kill happen on the way that do goes.
func (f *fault) round(step, victim string, do func(*fault) error) {
	f.t.Helper()
	f.killed = f.daemon
	f.kill = func() { must.NoError(f.t, os.WriteFile(f.arm, []byte(step), 0o600)) }
	// One that hangs says where.
	hangs := time.AfterFunc(time.Minute, func() { _ = f.killed.cmd.Process.Signal(unix.SIGQUIT) })
	err := do(f)
	hangs.Stop()
	_, serr := os.Stat(f.arm)
	must.ErrorIs(f.t, serr, os.ErrNotExist, must.Sprintf("nothing was killed at %s: %v", step, err))
	if victim == theCRIU {
		return
	}
	must.ErrorIs(f.t, err, nodeapi.ErrUnreachable, must.Sprintf("the daemon was not killed at %s", step))
	_ = f.killed.cmd.Wait()
	f.killed.client.Close()
	if victim == theBoth {
		f.killHeld()
	}
	f.killed.start()
}

// killHeld kills the CRIU that has outlived the daemon, and returns when it has ended.
func (f *fault) killHeld() {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.killed.dir, "s", "checkpoints", string(f.sb.ID), criuFile))
	must.NoError(f.t, err)
	var note criuNote
	must.NoError(f.t, json.Unmarshal(b, &note))
	must.True(f.t, note.Held)
	fd, err := unix.PidfdOpen(note.PID, 0)
	must.NoError(f.t, err, must.Sprint("it waits"))
	defer unix.Close(fd)
	must.NoError(f.t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	waitUntil(f.t, "criu to end", func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		return err == nil && n == 1
	})
	time.Sleep(300 * time.Millisecond) // whatever it has let go of counts on
}

func (f *fault) pauseFirst(depth nodeapi.Depth) {
	f.t.Helper()
	_, err := f.client.Pause(f.t.Context(), f.sb.ID, pauseTo(depth))
	must.NoError(f.t, err)
}

func (f *fault) pause() error {
	f.kill()
	_, err := f.client.Pause(f.t.Context(), f.sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	return err
}

func (f *fault) pauseFiles() error {
	f.kill()
	_, err := f.client.Pause(f.t.Context(), f.sb.ID, pauseTo(nodeapi.DepthFiles))
	return err
}

func (f *fault) store() error {
	f.kill()
	_, err := f.client.Pause(f.t.Context(), f.sb.ID, nodeapi.PauseRequest{Wait: true, Store: api.NewSnapshotID(), Tenant: "a"})
	return err
}

func (f *fault) thaw() error {
	f.pauseFirst(nodeapi.DepthFrozen)
	f.kill()
	_, err := f.client.Resume(f.t.Context(), f.sb.ID, nodeapi.ResumeRequest{})
	return err
}

func (f *fault) restore() error {
	f.pauseFirst(nodeapi.DepthCheckpointed)
	f.kill()
	_, err := f.client.Resume(f.t.Context(), f.sb.ID, nodeapi.ResumeRequest{})
	return err
}

// remembered finds the sandbox running or paused, with all of its memory.
func (f *fault) remembered() {
	f.t.Helper()
	f.runOn()
	must.Eq(f.t, f.much.want, f.much.ask(f.sb))
	waitUntil(f.t, "the images to go", func() bool {
		_, err := os.Stat(f.much.home(f.sb.ID))
		return errors.Is(err, os.ErrNotExist)
	})
}

// stopOne has a process that is stopped, as by ^Z, in the sandbox from now on: on cgroup v1 it cannot be traced while it is frozen.
func (f *fault) stopOne() {
	f.t.Helper()
	p, err := f.client.Start(f.t.Context(), f.sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"sleep", "100000"}}})
	must.NoError(f.t, err)
	f.stopped = p.PID
	must.NoError(f.t, f.client.Signal(f.t.Context(), f.sb.ID, nodeapi.SignalRequest{PID: p.PID, Signal: int(unix.SIGSTOP)}))
	waitUntil(f.t, "it to stop", f.isStopped)
}

func (f *fault) isStopped() bool {
	_, code := f.exec(f.sb, "grep", "-q", "^State:.*T (stopped)", fmt.Sprintf("/proc/%d/status", f.stopped))
	return code == 0
}

// stoppedStill finds the sandbox running or paused, and the stopped process as it was.
func (f *fault) stoppedStill() {
	f.t.Helper()
	f.runOn()
	waitUntil(f.t, "the process to be stopped still", f.isStopped) // a thaw has it stop again, before it does anything
}

func (f *fault) snapshot() error {
	f.id = api.NewSnapshotID()
	f.kill()
	return f.snapshotAgain()
}

func (f *fault) snapshotAgain() error {
	_, err := f.client.Snapshot(f.t.Context(), f.sb.ID, nodeapi.SnapshotRequest{ID: f.id, Tenant: "a"})
	return err
}

func (f *fault) fork() error {
	f.id = api.NewSnapshotID()
	must.NoError(f.t, f.snapshotAgain())
	f.copied = restoreRequest(f.id, "a")
	f.copied.Env = map[string]string{"OWN": "its own"}
	f.kill()
	_, err := f.client.Create(f.t.Context(), f.copied)
	return err
}

// forkFiles is fork, of a sandbox in which nothing runs.
func (f *fault) forkFiles() error {
	if f.still.ID == "" {
		f.still = f.create()
		_, code := f.exec(f.still, "bash", "-c", "head -c 300000 /dev/urandom > ~/file; ln ~/file ~/same; mkdir -m 700 ~/dir; ln -s ../file ~/dir/link")
		must.Eq(f.t, 0, code)
	}
	f.id = api.NewSnapshotID()
	_, err := f.client.Snapshot(f.t.Context(), f.still.ID, nodeapi.SnapshotRequest{ID: f.id, Tenant: "a"})
	must.NoError(f.t, err)
	f.copied = restoreRequest(f.id, "a")
	f.copied.Env = map[string]string{"OWN": "its own"}
	f.kill()
	_, err = f.client.Create(f.t.Context(), f.copied)
	return err
}

// move does what the control service does: into the store, an end here, a create there.
func (f *fault) move() error {
	f.id = api.NewSnapshotID()
	_, err := f.client.Pause(f.t.Context(), f.sb.ID, nodeapi.PauseRequest{Wait: true, Store: f.id, Tenant: "a"})
	must.NoError(f.t, err)
	must.NoError(f.t, f.client.Delete(f.t.Context(), f.sb.ID))
	f.copied = restoreRequest(f.id, "a")
	f.copied.ID, f.copied.Restore.Same = f.sb.ID, true
	f.killed = f.there
	f.kill()
	_, err = f.there.client.Create(f.t.Context(), f.copied)
	return err
}

// runOn finds a sandbox that runs or is paused, and lets it go on.
func (f *fault) runOn() {
	f.t.Helper()
	got, err := f.client.Get(f.t.Context(), f.sb.ID)
	must.NoError(f.t, err)
	switch {
	case got.State == nodeapi.StateRunning:
		f.outcomes["running"]++
		return
	case got.Pause.Depth == nodeapi.DepthFrozen:
		f.outcomes["frozen"]++
	default:
		f.outcomes["on disk"]++
		// The record comes before the end of the processes, which are frozen.
		waitUntil(f.t, "what is on disk to end", func() bool { return f.processes(f.daemon, f.sb) == 0 })
	}
	must.Eq(f.t, nodeapi.StatePaused, got.State)
	_, err = f.client.Resume(f.t.Context(), f.sb.ID, nodeapi.ResumeRequest{})
	must.NoError(f.t, err)
}

// bootOn waits for the pause to have gone on, or finds the sandbox running as before, and begins the counting anew where it was to end.
func (f *fault) bootOn() {
	f.t.Helper()
	depth := nodeapi.DepthFrozen
	waitUntil(f.t, "the pause to the files", func() bool {
		got, err := f.client.Get(f.t.Context(), f.sb.ID)
		must.NoError(f.t, err)
		if got.State == nodeapi.StateRunning {
			return true
		}
		depth = got.Pause.Depth
		return depth == nodeapi.DepthFiles
	})
	if depth != nodeapi.DepthFiles {
		f.outcomes["running"]++
		return
	}
	f.outcomes["files"]++
	waitUntil(f.t, "what is on disk to end", func() bool { return f.processes(f.daemon, f.sb) == 0 })
	_, err := f.client.Resume(f.t.Context(), f.sb.ID, nodeapi.ResumeRequest{})
	must.NoError(f.t, err)
	must.Eq(f.t, 0, f.counters(f.daemon, f.sb))
	_, code := f.exec(f.sb, "rm", "/home/user/count")
	must.Eq(f.t, 0, code)
	f.startCounter(f.sb)
	waitUntil(f.t, "the counter to begin", func() bool {
		_, code := f.exec(f.sb, "bash", "-c", "[ -s /home/user/count ]")
		return code == 0
	})
}

// snapshotted finds the sandbox running. Its snapshot is there as a whole or not at all, and can be made under the same id.
func (f *fault) snapshotted() {
	f.t.Helper()
	f.runOn()
	if _, err := f.client.GetSnapshot(f.t.Context(), "a", f.id); err == nil {
		f.outcomes["there"]++
	} else {
		must.True(f.t, api.IsNotFound(err), must.Sprintf("%v", err))
		f.outcomes["not there"]++
	}
	must.NoError(f.t, f.snapshotAgain())
	copied, err := f.client.Create(f.t.Context(), restoreRequest(f.id, "a"))
	must.NoError(f.t, err)
	f.whole(f.daemon, copied)
	must.NoError(f.t, f.client.Delete(f.t.Context(), copied.ID))
	must.NoError(f.t, f.client.DeleteSnapshot(f.t.Context(), "a", f.id))
}

// forked finds the copy running or not there, and then it can be made by the same request.
func (f *fault) forked() {
	f.t.Helper()
	copied := f.madeOnce(f.daemon)
	out, code := f.exec(copied, "bash", "-c", "echo $OWN; hostname")
	must.Eq(f.t, 0, code)
	must.Eq(f.t, "its own\n"+string(copied.ID)+"\n", out)
	must.NoError(f.t, f.client.Delete(f.t.Context(), copied.ID))
	must.NoError(f.t, f.client.DeleteSnapshot(f.t.Context(), "a", f.id))
}

func (f *fault) forkedFiles() {
	f.t.Helper()
	copied := f.made(f.daemon)
	const look = "sha256sum < ~/dir/link && stat -c '%a %h %u %Y' ~/file ~/same ~/dir"
	want, code := f.exec(f.still, "bash", "-c", look)
	must.Eq(f.t, 0, code, must.Sprint(want))
	got, _ := f.exec(copied, "bash", "-c", look)
	must.Eq(f.t, want, got)
	out, _ := f.exec(copied, "bash", "-c", "echo $OWN; hostname")
	must.Eq(f.t, "its own\n"+string(copied.ID)+"\n", out)
	f.nothingLeft(f.daemon)
	must.NoError(f.t, f.client.Delete(f.t.Context(), copied.ID))
	must.NoError(f.t, f.client.DeleteSnapshot(f.t.Context(), "a", f.id))
}

// moved finds the sandbox there, or only in the store, from where it comes with the same request. The next move is the way back.
func (f *fault) moved() {
	f.t.Helper()
	moved := f.madeOnce(f.there)
	must.Eq(f.t, f.sb.Hostname, moved.Hostname)
	must.NoError(f.t, f.there.client.DeleteSnapshot(f.t.Context(), "a", f.id))
	f.daemon, f.there = f.there, f.daemon
}

// madeOnce returns what the killed create has made, or makes it, and checks that it is whole.
func (f *fault) madeOnce(on *daemon) nodeapi.Sandbox {
	f.t.Helper()
	got := f.made(on)
	f.whole(on, got)
	return got
}

func (f *fault) made(on *daemon) nodeapi.Sandbox {
	f.t.Helper()
	got, err := on.client.Get(f.t.Context(), f.copied.ID)
	if err == nil {
		f.outcomes["running"]++
	} else {
		must.True(f.t, api.IsNotFound(err), must.Sprintf("%v", err))
		f.outcomes["not there"]++
		got, err = on.client.Create(f.t.Context(), f.copied)
		must.NoError(f.t, err)
	}
	must.Eq(f.t, nodeapi.StateRunning, got.State)
	return got
}

// whole checks that a sandbox runs, once, with all that it had.
func (f *fault) whole(on *daemon, sb nodeapi.Sandbox) {
	f.t.Helper()
	on.counts(sb)
	// A child that the counter starts has its name for a moment.
	waitUntil(f.t, "one process that counts", func() bool { return f.counters(on, sb) == 1 })
	r, _, err := on.client.ReadFile(f.t.Context(), sb.ID, "/home/user/file", nodeapi.FileOptions{})
	must.NoError(f.t, err)
	sum := sha256.New()
	_, err = io.Copy(sum, r)
	must.NoError(f.t, err)
	must.NoError(f.t, r.Close())
	must.Eq(f.t, f.sum[:], sum.Sum(nil))
	f.nothingLeft(on)
}

// nothingLeft checks that nothing is on the machine's disk that belongs to no sandbox.
func (f *fault) nothingLeft(on *daemon) {
	f.t.Helper()
	waitUntil(f.t, "half a checkpoint to go", func() bool { // what is of the past is removed in the background
		left, err := filepath.Glob(filepath.Join(on.dir, "s/checkpoints/*", "[nc][eu]*")) // new, current
		must.NoError(f.t, err)
		more, err := filepath.Glob(filepath.Join(on.dir, "s/checkpoints", ".snapshot-*"))
		must.NoError(f.t, err)
		return len(left)+len(more) == 0
	})
	list, err := on.client.List(f.t.Context())
	must.NoError(f.t, err)
	folders, err := filepath.Glob(filepath.Join(on.dir, "s/sandboxes", "*"))
	must.NoError(f.t, err)
	must.Len(f.t, len(list), folders, must.Sprint("writable layers"))
}

// processes counts those in a sandbox's control group.
func (f *fault) processes(on *daemon, sb nodeapi.Sandbox) int {
	f.t.Helper()
	return len(commands(f.t, on, sb))
}

// counters counts the processes that count.
func (f *fault) counters(on *daemon, sb nodeapi.Sandbox) (n int) {
	f.t.Helper()
	for _, c := range commands(f.t, on, sb) {
		if strings.Contains(c, counter) {
			n++
		}
	}
	return n
}

// commands are the command lines of the processes in a sandbox's control group, wherever they come from.
func commands(t testing.TB, on *daemon, sb nodeapi.Sandbox) (out []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	must.NoError(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), "/"+on.parent+"/"+string(sb.ID)) {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline")); err == nil {
			out = append(out, string(b))
		}
	}
	return out
}
