package attack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Resources: what a sandbox takes, it takes from itself. Each case also asks the neighbour for the same thing while the
// attack goes on, and ends the sandbox under it.
func TestResources(t *testing.T) {
	a := newArena(t)
	t.Run("R01", func(t *testing.T) {
		j := a.judge(t, "R01", "fork bombs")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			j.inside(p, "fork until refused (limit 128)", a.line(t, sb.ID, "intruder", "forks"))
			_, err := a.node.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/true"}}})
			j.inside(p, "then an exec by the API", errText(err))
			must.Error(t, err)
			n := a.stats(t, sb.ID).PIDs
			j.host(n <= 128, "%s: its group holds %d processes, at most 128", p, n)
			a.healthy(t, j, "forks")
			a.ends(t, j, sb.ID)
		}
		sb := a.create(t)
		a.start(t, sb.ID, "user", "/bin/bash", "-c", "b() { b | b & }; b; sleep 600")
		until(t, "the bomb", func() bool { return a.stats(t, sb.ID).PIDs > 100 })
		a.healthy(t, j, "a bomb of shells")
		a.ends(t, j, sb.ID)
	})
	for _, kind := range []string{"heap", "mapped", "locked", "shm", "memfd", "pipes", "sockets", "messages", "file"} {
		t.Run("R02_"+kind, func(t *testing.T) {
			j := a.judge(t, "R02", "memory bomb: "+kind)
			defer j.end()
			sb := a.create(t, func(r *nodeapi.CreateRequest) {
				r.Limits.MemoryBytes, r.Limits.TmpBytes = 64<<20, 1<<30
			})
			r := a.runFor(t, sb.ID, 20*time.Second, "intruder", "memory", kind)
			j.inside("default", "take "+kind, r)
			stats, err := a.node.Stats(t.Context(), sb.ID)
			if err == nil {
				// The kernel lets a few pages of its own through at the limit.
				j.host(stats.MemoryMax <= 65<<20, "its group never held more than its 64 MiB and a few pages (most %d bytes; out of memory %d times)", stats.MemoryMax, stats.OOMKills)
			} else {
				j.host(true, "the sandbox ended of it: %v", err)
			}
			a.healthy(t, j, kind)
			a.ends(t, j, sb.ID)
		})
	}
	t.Run("R02_main", func(t *testing.T) {
		j := a.judge(t, "R02", "memory bomb in the sandbox's own command: the API says so")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) {
			r.Limits.MemoryBytes = 64 << 20
			r.Main = &guest.Start{Argv: []string{"intruder", "memory", "heap"}}
		})
		got, err := a.node.Wait(t.Context(), sb.ID)
		must.NoError(t, err)
		j.inside("default", "take heap", fmt.Sprintf("%+v", *got.Exit))
		j.host(got.Exit.OOM && got.Exit.Code == 137, "the node reports the kernel's out-of-memory killer")
	})
	t.Run("R04", func(t *testing.T) {
		j := a.judge(t, "R04", "all of the processor on many threads")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.CPUMillis = 200 })
		a.start(t, sb.ID, "user", "intruder", "spin", "8")
		until(t, "the first throttled period", func() bool { return a.stats(t, sb.ID).Throttled > 0 })
		from := a.stats(t, sb.ID)
		time.Sleep(3 * time.Second)
		to := a.stats(t, sb.ID)
		share := float64(to.CPUNanos-from.CPUNanos) / float64(to.Time.Sub(from.Time))
		j.inside("default", "8 threads spin", "running")
		j.host(share <= 0.2*1.1, "it used %.3f of a core, its quota is 0.200", share)
		a.healthy(t, j, "spin")
		a.ends(t, j, sb.ID)
	})
	t.Run("R05", func(t *testing.T) {
		j := a.judge(t, "R05", "inodes of /tmp and /dev/shm")
		defer j.end()
		for _, dir := range []string{"/tmp", "/dev/shm"} {
			sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = 96 << 20 })
			r := a.runFor(t, sb.ID, time.Minute, "intruder", "inodes", dir, "300000")
			j.inside("default", "300000 empty files in "+dir, r)
			must.False(t, strings.Contains(r, "300000 files"))
			a.healthy(t, j, "inodes")
			a.ends(t, j, sb.ID)
		}
	})
	t.Run("R09", func(t *testing.T) {
		j := a.judge(t, "R09", "output without end, with no reader and with one that has stopped")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) {
			r.Main = &guest.Start{Argv: []string{"intruder", "flood", fmt.Sprint(1 << 40)}}
		})
		s, err := a.node.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"intruder", "flood", fmt.Sprint(1 << 40)}, KillOnDetach: true}})
		must.NoError(t, err)
		before := heap()
		time.Sleep(3 * time.Second)
		grown := int64(heap()) - int64(before)
		out := "alive"
		if h, err := a.node.Health(t.Context(), sb.ID); err != nil || !h.Healthy {
			out = fmt.Sprint("not healthy: ", err, h.Reason)
		}
		j.inside("default", "two floods of a tebibyte", out)
		must.Eq(t, "alive", out)
		j.host(grown < 64<<20, "the node's memory grew by %d KiB, less than 64 MiB", grown>>10)
		used := a.stats(t, sb.ID).MemoryBytes
		j.host(used < 128<<20, "the sandbox uses %d KiB, less than 128 MiB", used>>10)
		a.healthy(t, j, "flood")
		must.NoError(t, s.Close())
		a.ends(t, j, sb.ID)
	})
	for _, thing := range []string{"descriptors", "inotify", "terminals", "timers", "pipes", "signals", "queues", "locked"} {
		t.Run("R10_"+thing, func(t *testing.T) {
			j := a.judge(t, "R10", "all "+thing)
			defer j.end()
			var ids []api.SandboxID
			for range 3 { // sandboxes in concert
				sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.NoFile = 8192 })
				ids = append(ids, sb.ID)
				j.inside("default", "take all "+thing, a.line(t, sb.ID, "intruder", "take", thing))
			}
			got := a.line(t, a.neighbour.ID, "intruder", "take", thing)
			j.host(!strings.HasPrefix(got, "0 "), "meanwhile the neighbour gets %s", got)
			if thing == "inotify" {
				fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
				j.host(err == nil, "and so does the host: %v", err)
				if err == nil {
					must.NoError(t, unix.Close(fd))
				}
			}
			a.healthy(t, j, thing)
			for _, id := range ids {
				a.ends(t, j, id)
			}
			must.NoError(t, a.node.Signal(t.Context(), a.neighbour.ID, nodeapi.SignalRequest{Signal: 9}))
		})
	}
	t.Run("R12", func(t *testing.T) {
		j := a.judge(t, "R12", "its own control group")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			r := a.run(t, sb.ID, "root", "/bin/bash", "-c", "ls -d /sys/fs/cgroup/* 2>&1; cat /proc/self/cgroup; mkdir /sys/fs/cgroup/x; mkdir -p /tmp/c && mount -t cgroup -o memory none /tmp/c; mount -t cgroup2 none /tmp/c")
			j.inside(p, "find, make and mount groups", r.out+r.err)
			for line := range strings.Lines(r.out) {
				if i := strings.LastIndexByte(line, ':'); i >= 0 && line[i+1] == '/' {
					must.Eq(t, "/", strings.TrimSpace(line[i+1:]))
				}
			}
			a.destroy(t, sb.ID)
		}
	})
	t.Run("R13", func(t *testing.T) {
		j := a.judge(t, "R13", "a sandbox that ignores every signal")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Main = &guest.Start{Argv: []string{"intruder", "deaf", "all"}} })
		until(t, "its children", func() bool { return a.stats(t, sb.ID).PIDs > 20 })
		must.NoError(t, a.node.Signal(t.Context(), sb.ID, nodeapi.SignalRequest{Signal: 15}))
		got, err := a.node.Stop(t.Context(), sb.ID, nodeapi.StopRequest{Timeout: 500 * time.Millisecond})
		must.NoError(t, err)
		j.inside("default", "nine busy processes ignore 64 signals", fmt.Sprintf("%+v", *got.Exit))
		j.host(got.State == nodeapi.StateStopped, "it stopped within its half second of grace and the kill")
	})
	t.Run("R14", func(t *testing.T) {
		j := a.judge(t, "R14", "stopped, frozen by itself, and waiting in the kernel")
		defer j.end()
		sb := a.create(t)
		a.start(t, sb.ID, "user", "intruder", "stuck")
		a.start(t, sb.ID, "user", "/bin/bash", "-c", "kill -STOP $$")
		a.start(t, sb.ID, "root", "/bin/bash", "-c", "kill -STOP -1; sleep 600")
		j.inside("default", "stop everything but PID 1", "done")
		a.ends(t, j, sb.ID)
	})
	t.Run("R15", func(t *testing.T) {
		j := a.judge(t, "R15", "orphans by the hundred, for PID 1 to reap")
		defer j.end()
		sb := a.create(t)
		j.inside("default", "300 orphans", a.ok(t, sb.ID, "user", "intruder", "orphans", "300"))
		until(t, "PID 1 to reap them", func() bool { return a.stats(t, sb.ID).PIDs < 24 })
		j.host(true, "its group holds %d threads: no zombie stayed", a.stats(t, sb.ID).PIDs)
	})
	t.Run("R16", func(t *testing.T) {
		j := a.judge(t, "R16", "core files")
		defer j.end()
		for _, p := range profiles {
			sb := a.create(t, profile(p))
			r := a.run(t, sb.ID, "root", "/bin/bash", "-c", "cd /home/user; ulimit -c unlimited; ulimit -c; kill -SEGV $$")
			j.inside(p, "crash with a core limit as high as can be", fmt.Sprintf("%s %s signal %d", r.out, r.err, r.exit.Signal))
			must.Eq(t, 11, r.exit.Signal)
			found := a.ok(t, sb.ID, "root", "/bin/bash", "-c", "find /home /tmp -name 'core*'")
			must.Eq(t, "", found)
			cores, err := filepath.Glob("core*")
			must.NoError(t, err)
			j.host(len(cores) == 0, "%s: no core file, inside or here", p)
			a.destroy(t, sb.ID)
		}
	})
}

// A process that waits in the kernel for what no signal ends: the host freezes the file system under it, as for a snapshot of a volume.
func TestResources_frozen(t *testing.T) {
	if err := (&disk.LoopImage{}).Probe(""); err != nil {
		t.Skip(err)
	}
	a := newArena(t, func(c *node.Config) { c.DiskLimiter = disk.Image })
	t.Run("R14_frozen", func(t *testing.T) {
		j := a.judge(t, "R14", "waiting in the kernel for a frozen file system")
		defer j.end()
		sb := a.create(t, func(r *nodeapi.CreateRequest) { r.Limits.DiskBytes = 64 << 20 })
		a.start(t, sb.ID, "user", "/bin/bash", "-c", "cd; while :; do echo x >> file; done")
		layer, err := os.Open(a.dir + "/s/sandboxes/" + string(sb.ID))
		must.NoError(t, err)
		const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE and FITHAW of linux/fs.h
		must.NoError(t, unix.IoctlSetInt(int(layer.Fd()), freeze, 0))
		frozen := true
		defer func() {
			if frozen {
				must.NoError(t, errors.Join(unix.IoctlSetInt(int(layer.Fd()), thaw, 0), layer.Close()))
			}
		}()
		until(t, "the process to wait", func() bool { return a.waits(t, "bash") })
		begin := time.Now()
		err = a.node.Delete(t.Context(), sb.ID)
		took := time.Since(begin)
		j.inside("default", "write to it", fmt.Sprint("killed: ", err))
		j.host(api.StatusOf(err) == 503 && strings.Contains(err.Error(), `("bash")`) && took < destroyTime, "destroy says in %s what it waits for, by pid and name", short(took))
		a.healthy(t, j, "frozen")
		must.NoError(t, errors.Join(unix.IoctlSetInt(int(layer.Fd()), thaw, 0), layer.Close())) // an open file would keep the mount
		frozen = false
		until(t, "its end", func() bool { _, err := a.node.Get(t.Context(), sb.ID); return api.IsNotFound(err) })
		j.host(!a.waits(t, "bash"), "once it is thawed the processes are reaped and the sandbox is gone")
	})
}

// waits reports whether a program of a sandbox is in an uninterruptible sleep.
func (a *arena) waits(t *testing.T, name string) bool {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must.NoError(t, err)
	for _, path := range stats {
		var st unix.Stat_t
		b, err := os.ReadFile(path)
		if err == nil && unix.Stat(filepath.Dir(path), &st) == nil && st.Uid >= idBase && strings.Contains(string(b), " ("+name+") D ") {
			return true
		}
	}
	return false
}

// heap is what this process, and with it the node, holds.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func (a *arena) stats(t *testing.T, id api.SandboxID) nodeapi.Stats {
	t.Helper()
	s, err := a.node.Stats(t.Context(), id)
	must.NoError(t, err)
	return s
}

// line starts a program, returns its first line and leaves it running.
func (a *arena) line(t *testing.T, id api.SandboxID, argv ...string) string {
	t.Helper()
	s, err := a.node.Exec(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{Argv: argv, User: "user"}})
	must.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	r, w := io.Pipe()
	go func() {
		_, err := s.Copy(w, w)
		_ = w.CloseWithError(err)
	}()
	got, err := bufio.NewReader(r).ReadString('\n')
	if err != nil && got == "" {
		return "ended without a word"
	}
	return strings.TrimSpace(got)
}

// runFor runs a program that may never end by itself, and says what it said, or how it ended.
func (a *arena) runFor(t *testing.T, id api.SandboxID, limit time.Duration, argv ...string) string {
	t.Helper()
	s, err := a.node.Exec(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{Argv: argv, User: "user", KillOnDetach: true}})
	must.NoError(t, err)
	defer s.Close()
	r, w := io.Pipe()
	ended := make(chan string, 1)
	go func() {
		exit, err := s.Copy(w, w)
		ended <- fmt.Sprintf("ended with %d (signal %d) %v", exit.Code, exit.Signal, err)
		_ = w.Close()
	}()
	said := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(r).ReadString('\n')
		said <- line
		_, _ = io.Copy(io.Discard, r)
	}()
	select {
	case line := <-said:
		if line != "" {
			return line
		}
		return <-ended
	case how := <-ended:
		return how
	case <-time.After(limit):
		return "goes on"
	}
}

// healthy asks the neighbour to work, and the host too, while the attack goes on.
func (a *arena) healthy(t *testing.T, j *judgement, attack string) {
	t.Helper()
	start := time.Now()
	out := a.ok(t, a.neighbour.ID, "user", "/bin/bash", "-c", "echo $((6*7)); touch /home/user/x && rm /home/user/x")
	_, err := os.ReadFile("/proc/loadavg")
	must.NoError(t, err)
	j.host(strings.TrimSpace(out) == "42", "meanwhile (%s) the neighbour works, in %s", attack, short(time.Since(start)))
}

// ends destroys a sandbox under attack.
func (a *arena) ends(t *testing.T, j *judgement, id api.SandboxID) {
	t.Helper()
	took := a.destroy(t, id)
	_, err := a.node.Get(t.Context(), id)
	j.host(api.IsNotFound(err) && took < destroyTime, "destroyed, in %s", short(took))
}
