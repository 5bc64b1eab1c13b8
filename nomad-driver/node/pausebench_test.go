package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/stats"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// holds is a Python that holds memory with other bytes in each page, and says when it does. On each SIGUSR1 it changes a
// twentieth of its pages.
func holds(mib int, ready string) []string {
	return []string{"python3", "-c", fmt.Sprintf(`
import os, random, signal, time
b = bytearray(os.urandom(%d << 20))
done = 0
def change(*_):
    global done
    for _ in range(len(b) // 4096 // 20):
        at = random.randrange(len(b) // 4096) * 4096
        b[at:at+16] = os.urandom(16)
    done += 1
    open(%q, 'w').write(str(done))
signal.signal(signal.SIGUSR1, change)
open(%q, 'w').write('0')
while True:
    time.sleep(1000)
`, mib, ready, ready)}
}

// pauses are the times of one kind of sandbox.
type pauses struct {
	freeze, thaw, frozen, checkpoint, restore, answer []time.Duration
	whole                                             []time.Duration // from the resume until all memory is there
	dumpFloor, frozenFloor, restoreFloor              []time.Duration
}

// BenchmarkPause freezes, thaws, checkpoints and restores a sandbox that is idle, and ones whose Python holds 100 MiB and 1 GiB. The
// floor is CRIU's command line on the same program on the host, without a sandbox.
func BenchmarkPause(b *testing.B) {
	criu := sandboxtest.CRIU(b)
	d := startDaemon(b, "-criu", criu)
	d.importPython()
	kinds := []struct {
		name string
		mib  int
	}{{"idle", 0}, {"100m", 100}, {"1g", 1024}}
	all := map[string]*pauses{}
	for _, k := range kinds {
		all[k.name] = &pauses{}
	}
	for b.Loop() {
		for _, k := range kinds {
			all[k.name].measure(b, d, criu, k.mib)
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, k := range kinds {
		p := all[k.name]
		for name, times := range map[string][]time.Duration{
			"freeze": p.freeze, "thaw": p.thaw, "frozen": p.frozen, "checkpoint": p.checkpoint, "restore": p.restore, "answer": p.answer, "whole": p.whole,
			"dump-floor": p.dumpFloor, "frozen-floor": p.frozenFloor, "restore-floor": p.restoreFloor,
		} {
			b.ReportMetric(quantile(times, .5), k.name+"-"+name+"-µs")
		}
	}
}

func (p *pauses) measure(b *testing.B, d *daemon, criu string, mib int) {
	b.Helper()
	timed := func(to *[]time.Duration, f func()) {
		begin := time.Now()
		f()
		*to = append(*to, time.Since(begin))
	}
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template, r.Limits.MemoryBytes = "python", 3<<30 })
	if mib > 0 {
		d.hold(sb, mib)
	}
	pause := func(depth nodeapi.Depth) func() {
		return func() {
			_, err := d.client.Pause(b.Context(), sb.ID, pauseTo(depth))
			must.NoError(b, err)
		}
	}
	resume := func() {
		_, err := d.client.Resume(b.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(b, err)
	}
	for range 50 {
		timed(&p.freeze, pause(nodeapi.DepthFrozen))
		timed(&p.thaw, resume)
	}
	snap, err := d.client.Snapshot(b.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID()})
	must.NoError(b, err)
	p.frozen = append(p.frozen, snap.Frozen)
	must.NoError(b, d.client.DeleteSnapshot(b.Context(), "", snap.ID))
	timed(&p.checkpoint, pause(nodeapi.DepthCheckpointed))
	timed(&p.whole, func() {
		timed(&p.answer, func() {
			timed(&p.restore, resume)
			_, code := d.exec(sb, "true")
			must.Eq(b, 0, code)
		})
		waitUntil(b, "all memory", func() bool {
			_, err := os.Stat(filepath.Join(d.dir, "s/checkpoints", string(sb.ID)))
			return errors.Is(err, os.ErrNotExist)
		})
	})
	must.NoError(b, d.client.Delete(b.Context(), sb.ID))
	dump, frozen, restore := criuFloor(b, criu, mib)
	unix.Sync() // what has been written here is not for the next one to wait for
	p.dumpFloor, p.frozenFloor, p.restoreFloor = append(p.dumpFloor, dump), append(p.frozenFloor, frozen), append(p.restoreFloor, restore)
}

// hold starts a process that holds memory, and returns once it does.
func (d *daemon) hold(sb nodeapi.Sandbox, mib int) guest.ProcessID {
	d.t.Helper()
	p, err := d.client.Start(d.t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: holds(mib, "/home/user/ready")}})
	must.NoError(d.t, err)
	d.changed(sb, "0")
	return p.PID
}

// changed waits for the process to have changed its memory so often.
func (d *daemon) changed(sb nodeapi.Sandbox, times string) {
	d.t.Helper()
	_, code := d.exec(sb, "bash", "-c", `for i in $(seq 6000); do [ "$(cat ~/ready 2>/dev/null)" = "$0" ] && exit 0; sleep 0.02; done; exit 1`, times)
	must.Eq(d.t, 0, code)
}

// criuFloor dumps and restores the same program on the host with CRIU's command line. frozen is how long CRIU says that the program stood still.
func criuFloor(b *testing.B, criu string, mib int) (dump, frozen, restore time.Duration) {
	b.Helper()
	dir := b.TempDir()
	images, ready := filepath.Join(dir, "images"), filepath.Join(dir, "ready")
	must.NoError(b, os.Mkdir(images, 0o700))
	argv := []string{"sleep", "1000"}
	if mib > 0 {
		argv = holds(mib, ready)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Setsid: true}
	must.NoError(b, cmd.Start())
	for end := time.Now().Add(2 * time.Minute); mib > 0; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		must.True(b, time.Now().Before(end), must.Sprint("the program is not ready"))
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	run := func(args ...string) time.Duration {
		begin := time.Now()
		out, err := exec.Command(criu, append(args, "-D", images, "--manage-cgroups=ignore")...).CombinedOutput()
		took := time.Since(begin)
		must.NoError(b, err, must.Sprintf("criu %v: %s", args, out))
		return took
	}
	dump = run("dump", "-t", pid)
	_ = cmd.Wait() // CRIU has killed it
	folder, err := os.Open(images)
	must.NoError(b, err)
	own, err := stats.CriuGetDumpStats(folder)
	must.NoError(b, errors.Join(err, folder.Close()))
	frozen = time.Duration(own.GetFreezingTime()+own.GetFrozenTime()) * time.Microsecond
	file := filepath.Join(dir, "pid")
	restore = run("restore", "-d", "--pidfile", file)
	text, err := os.ReadFile(file)
	must.NoError(b, err)
	var back int
	_, err = fmt.Sscan(string(text), &back)
	must.NoError(b, err)
	p, err := os.FindProcess(back)
	must.NoError(b, err)
	must.NoError(b, p.Kill())
	must.NoError(b, os.RemoveAll(dir))
	return dump, frozen, restore
}

// BenchmarkForks makes 100 copies of one snapshot, 16 at a time: of a sandbox in which nothing runs, and of one with a process. The floor is CRIU's command line
// restoring one process on the host.
func BenchmarkForks(b *testing.B) {
	criu := sandboxtest.CRIU(b)
	d := startDaemon(b, "-criu", criu)
	var bare, busy forks
	snapshot := func(run ...string) api.SnapshotID {
		sb := d.create()
		if len(run) > 0 {
			_, err := d.client.Start(b.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: run}})
			must.NoError(b, err)
		}
		id := api.NewSnapshotID()
		_, err := d.client.Snapshot(b.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id})
		must.NoError(b, err)
		return id
	}
	files, process := snapshot(), snapshot("sleep", "1000")
	var floor []time.Duration
	for b.Loop() {
		bare.make(b, d, files)
		busy.make(b, d, process)
		_, _, restore := criuFloor(b, criu, 0)
		floor = append(floor, restore)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(floor, .5), "floor-µs")
	bare.report(b, "bare-")
	busy.report(b, "busy-")
}

// forks are the times of copies of a snapshot.
type forks struct{ each, whole []time.Duration }

// make makes a hundred, and deletes them.
func (f *forks) make(b *testing.B, d *daemon, id api.SnapshotID) {
	b.Helper()
	const forks, parallel = 100, 16
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	made := make([]nodeapi.Sandbox, forks)
	begin := time.Now()
	for i := range forks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			start := time.Now()
			got, err := d.client.Create(context.Background(), restoreRequest(id, ""))
			if err != nil {
				b.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			made[i], f.each = got, append(f.each, time.Since(start))
		})
	}
	wg.Wait()
	f.whole = append(f.whole, time.Since(begin))
	for _, c := range made {
		if c.ID != "" {
			must.NoError(b, d.client.Delete(b.Context(), c.ID))
		}
	}
}

func (f *forks) report(b *testing.B, prefix string) {
	b.ReportMetric(quantile(f.whole, .5), prefix+"hundred-µs")
	b.ReportMetric(quantile(f.each, .5), prefix+"p50-µs")
	b.ReportMetric(quantile(f.each, .99), prefix+"p99-µs")
}

// BenchmarkStored takes ten snapshots of a Python that holds 64 MiB and changes at most 5 % of it between them.
func BenchmarkStored(b *testing.B) {
	d := startDaemon(b, "-criu", sandboxtest.CRIU(b))
	d.importPython()
	var whole, stored int64
	for b.Loop() {
		sb := d.create(func(r *nodeapi.CreateRequest) { r.Template, r.Limits.MemoryBytes = "python", 1<<30 })
		pid := d.hold(sb, 64)
		for i := range 10 {
			if i > 0 {
				must.NoError(b, d.client.Signal(b.Context(), sb.ID, nodeapi.SignalRequest{PID: pid, Signal: int(syscall.SIGUSR1)}))
				d.changed(sb, strconv.Itoa(i))
			}
			s, err := d.client.Snapshot(b.Context(), sb.ID, nodeapi.SnapshotRequest{ID: api.NewSnapshotID(), Tenant: string(sb.ID)})
			must.NoError(b, err)
			whole, stored = whole+s.Bytes, stored+s.StoredBytes
		}
		must.NoError(b, d.client.Delete(b.Context(), sb.ID))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(stored)/float64(whole)*100, "stored-%")
	b.ReportMetric(float64(stored)/float64(b.N)/(1<<20), "stored-MiB")
}

// touches is a Python that holds memory, and for each line that it is sent reads the same pages of it, in an order of no pattern, and tells how long that took, in µs.
func touches(mib, pages int, ready string) []string {
	return []string{"python3", "-c", fmt.Sprintf(`
import os, random, time
b = bytearray(os.urandom(%d << 20))
r = random.Random(1)
pages = [r.randrange(len(b) // 4096) * 4096 for _ in range(%d)]
os.mkfifo('/tmp/go')
os.mkfifo('/tmp/came')
open(%q, 'w').write('0')
while True:
    open('/tmp/go').read()
    begin = time.monotonic()
    for at in pages:
        b[at]
    open('/tmp/came', 'w').write(str(int((time.monotonic() - begin) * 1e6)))
`, mib, pages, ready)}
}

// BenchmarkRestore_touched copies a snapshot whose process reads 2,000 pages of 512 MiB first, here and there: without a note of what was touched before, and with
// one. The floor is the same reading where all memory is there.
func BenchmarkRestore_touched(b *testing.B) {
	dir := b.TempDir()
	d := startDaemon(b, "-criu", sandboxtest.CRIU(b), "-snapshot-dir", dir)
	d.importPython()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template, r.Limits.MemoryBytes = "python", 2<<30 })
	_, err := d.client.Start(b.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: touches(512, 2000, "/home/user/ready")}})
	must.NoError(b, err)
	d.changed(sb, "0")
	id := api.NewSnapshotID()
	_, err = d.client.Snapshot(b.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(b, err)
	touch := func(sb nodeapi.Sandbox) time.Duration {
		out, code := d.exec(sb, "bash", "-c", "echo > /tmp/go; cat /tmp/came")
		must.Eq(b, 0, code)
		took, err := strconv.Atoi(out)
		must.NoError(b, err)
		return time.Duration(took) * time.Microsecond
	}
	floor := []time.Duration{touch(sb)}
	must.NoError(b, d.client.Delete(b.Context(), sb.ID))
	notes := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "t/*/notes", string(id)))
		must.NoError(b, err)
		return found
	}
	var first, read, whole [2][]time.Duration
	for b.Loop() {
		for i := range first {
			sb, err := d.client.Create(b.Context(), restoreRequest(id, "a"))
			must.NoError(b, err)
			begin := time.Now()
			took := touch(sb)
			first[i], read[i] = append(first[i], time.Since(begin)), append(read[i], took)
			waitUntil(b, "all memory", func() bool {
				_, err := os.Stat(filepath.Join(d.dir, "s/checkpoints", string(sb.ID)))
				return errors.Is(err, os.ErrNotExist)
			})
			whole[i] = append(whole[i], time.Since(begin))
			floor = append(floor, touch(sb))
			if i == 0 {
				waitUntil(b, "a note", func() bool { return len(notes()) == 1 })
			} else {
				must.NoError(b, os.Remove(notes()[0]))
			}
			must.NoError(b, d.client.Delete(b.Context(), sb.ID))
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range []string{"unknown", "noted"} {
		b.ReportMetric(quantile(first[i], .5), name+"-answer-µs")
		b.ReportMetric(quantile(read[i], .5), name+"-touched-µs")
		b.ReportMetric(quantile(whole[i], .5), name+"-whole-µs")
	}
	b.ReportMetric(quantile(floor, .5), "floor-touched-µs")
}
