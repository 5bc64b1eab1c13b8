package sandbox_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func awaitDone(t *testing.T, s *sandbox.Sandbox) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("it did not end")
	}
}

func TestExit_tellsHowItEnded(t *testing.T) {
	h := sandboxtest.NewHost(t)
	t.Run("main's exit code", func(t *testing.T) {
		c := h.Config()
		c.Boot.Main = &guest.Start{Argv: []string{"/bin/bash", "-c", "exit 7"}}
		s := h.Create(t, c)
		awaitDone(t, s)
		if e := s.Exit(); e.Record == nil || e.Record.Reason != guest.ReasonMainExited || e.Record.Code != 7 || e.OOM {
			t.Errorf("exit is %+v, record %+v", e, e.Record)
		}
	})
	t.Run("main's signal", func(t *testing.T) {
		c := h.Config()
		c.Boot.Main = &guest.Start{Argv: []string{"/bin/bash", "-c", "kill -TERM $$; sleep 10"}}
		s := h.Create(t, c)
		awaitDone(t, s)
		if e := s.Exit(); e.Record == nil || e.Record.Signal != int(unix.SIGTERM) {
			t.Errorf("exit is %+v, record %+v", e, e.Record)
		}
	})
	t.Run("killed from outside", func(t *testing.T) {
		s := h.Create(t, h.Config())
		if _, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/sleep", "1000"}}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(s.Ref().PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitDone(t, s)
		if e := s.Exit(); e.Record != nil || !e.Waited || e.Signal != int(unix.SIGKILL) {
			t.Errorf("exit is %+v", e)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		c := h.Config()
		c.Limits.MemoryBytes = 64 << 20
		c.Boot.Main = &guest.Start{Argv: []string{"/bin/bash", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1"}}
		s := h.Create(t, c)
		awaitDone(t, s)
		if e := s.Exit(); !e.OOM {
			t.Errorf("exit is %+v, record %+v", e, e.Record)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		s := h.Create(t, h.Config())
		if err := s.Guest().Shutdown(t.Context(), guest.ShutdownParams{Grace: time.Second}); err != nil {
			t.Log(err) // the connection may end with the guest
		}
		awaitDone(t, s)
		if e := s.Exit(); e.Record == nil || e.Record.Reason != guest.ReasonShutdown {
			t.Errorf("exit is %+v, record %+v", e, e.Record)
		}
	})
}

func TestLimits_stopAForkBomb(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits = sandbox.Limits{PIDs: 64, CPUMillis: 500}
	s := h.Create(t, c)
	if _, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "b() { b | b & }; b; sleep 100"}}); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		st, err := s.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if st.PIDs > 64 {
			t.Fatalf("%d processes, at most 64", st.PIDs)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := s.Guest().Info(t.Context()); err != nil {
		t.Errorf("PID 1 did not survive the bomb: %v", err)
	}
	start := time.Now()
	sandboxtest.Release(t, s)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("release took %v", d)
	}
}

func TestLimits_smallestWork(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.Limits = sandbox.Limits{CPUMillis: 100, PIDs: sandbox.MinPIDs, MemoryBytes: sandbox.MinMemoryBytes, TmpBytes: 4096, NoFile: 64}
	s := h.Create(t, c)
	if got := sandboxtest.Shell(t, s, "", "echo $((6*7))"); got != "42\n" {
		t.Errorf("it says %q", got)
	}
}

// TestCreate_holdsNothingOfTheHost looks at PID 1's descriptors from outside: the exit record is the one file of the host.
func TestCreate_holdsNothingOfTheHost(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	dir := fmt.Sprintf("/proc/%d/fd", s.Ref().PID)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		link, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		inside := link == "/dev/null" || strings.HasPrefix(link, "socket:") || strings.HasPrefix(link, "anon_inode:") || strings.HasPrefix(link, "pipe:")
		if !inside && link != filepath.Join(h.RunDir, string(s.Ref().ID), "exit") && link != "/exit" {
			t.Errorf("descriptor %s is %s", fd.Name(), link)
		}
	}
}

func TestFreeze_stopsAndKillEndsTheFrozen(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	p, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "while :; do :; done"}})
	if err != nil {
		t.Fatal(err, p)
	}
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Millisecond)
	if after, err := s.Stats(); err != nil || after.CPUNanos != before.CPUNanos {
		t.Errorf("it ran for %d ns while frozen, %v", after.CPUNanos-before.CPUNanos, err)
	}
	if err := s.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Shell(t, s, "", "true")
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.Kill(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRelease_isIdempotent(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	sandboxtest.Release(t, s)
	sandboxtest.Release(t, s)
}

// TestRelease_removesDeepTrees nests directories as a process of a sandbox can, one in the other without end.
func TestRelease_removesDeepTrees(t *testing.T) {
	const depth = 100_000
	h := sandboxtest.NewHostIn(t, "/dev/shm")
	c := h.Config()
	s := h.Create(t, c)
	dir, err := unix.Open(filepath.Join(h.StateDir, string(c.ID), "upper"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		if err := unix.Mkdirat(dir, "d", 0o000); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 { // and files beside them
			if err := unix.Mknodat(dir, "f", unix.S_IFREG, 0); err != nil {
				t.Fatal(err)
			}
		}
		next, err := unix.Openat(dir, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err = errors.Join(err, unix.Close(dir)); err != nil {
			t.Fatal(err)
		}
		dir = next
	}
	if err := unix.Close(dir); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	sandboxtest.Release(t, s)
	t.Logf("%d nested directories removed in %v", depth, time.Since(start))
}

func TestCreate_twoHundredLeaveNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	h := sandboxtest.NewHost(t)
	for range 200 {
		s, err := sandbox.Create(t.Context(), h.Config())
		if err != nil {
			t.Fatal(err)
		}
		sandboxtest.Release(t, s)
	}
}

func TestCreate_manyAtATime(t *testing.T) {
	h := sandboxtest.NewHost(t)
	var g sync.WaitGroup
	for range 8 {
		g.Go(func() {
			for range 5 {
				s, err := sandbox.Create(t.Context(), h.Config())
				if err != nil {
					t.Error(err)
					return
				}
				if out, err := sandboxtest.Exec(t.Context(), s, guest.Start{Argv: []string{"/bin/true"}}); err != nil || out.Exit.Code != 0 {
					t.Errorf("exec: %+v, %v", out, err)
				}
				sandboxtest.Release(t, s)
			}
		})
	}
	g.Wait()
}

// TestCreate_existingIDIsLeftAlone creates the same id twice: the second must fail and not touch the first.
func TestCreate_existingIDIsLeftAlone(t *testing.T) {
	h := sandboxtest.NewHost(t)
	c := h.Config()
	s := h.Create(t, c)
	if _, err := sandbox.Create(t.Context(), c); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if got := sandboxtest.Shell(t, s, "", "echo alive"); got != "alive\n" {
		t.Errorf("the first says %q", got)
	}
}

func TestCreate_endsWithItsContext(t *testing.T) {
	h := sandboxtest.NewHost(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no longer wanted")
	cancel(cause)
	if _, err := sandbox.Create(ctx, h.Config()); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
}

func TestCreate_onAFullDiskLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,nr_inodes=12"); err != nil {
		t.Skip("no tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	h := sandboxtest.NewHost(t)
	for free := range 9 {
		t.Run(fmt.Sprint(free, " inodes"), func(t *testing.T) {
			var fill []string
			for i := range 11 - free {
				f := filepath.Join(dir, fmt.Sprint("fill", i))
				if err := os.WriteFile(f, nil, 0o600); err != nil {
					break
				}
				fill = append(fill, f)
			}
			c := h.Config()
			c.StateDir = dir
			c.Boot.Hostname = "other" // so that /etc is written
			s, err := sandbox.Create(t.Context(), c)
			if err == nil {
				sandboxtest.Release(t, s)
			} else if !strings.Contains(err.Error(), "no space left") && !strings.Contains(err.Error(), "read-only") {
				t.Errorf("error %q does not tell that the disk is full", err)
			}
			for _, f := range fill {
				if err := os.Remove(f); err != nil {
					t.Error(err)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// creatorEnv makes the test binary create a sandbox, print its Ref and wait to be killed.
const creatorEnv = "SANDBOX_TEST_CREATOR"

type creatorOrder struct {
	ID                             api.SandboxID
	Lower, StateDir, RunDir, Group string
	IDBase                         uint32
	Init                           string
	Main                           *guest.Start
}

func createAndHang() int {
	var o creatorOrder
	err := json.Unmarshal([]byte(os.Getenv(creatorEnv)), &o)
	if err == nil {
		var cg *cgroup.Tree
		var init *sandbox.InitBinary
		var s *sandbox.Sandbox
		cg, err = cgroup.Detect("/sys/fs/cgroup", o.Group)
		if err == nil {
			init, err = sandbox.OpenInit(o.Init)
		}
		if err == nil {
			s, err = sandbox.Create(context.Background(), sandbox.Config{
				ID: o.ID, Lower: o.Lower, StateDir: o.StateDir, RunDir: o.RunDir, IDBase: o.IDBase, Cgroups: cg, Init: init,
				Boot: guest.Boot{Main: o.Main},
			})
		}
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(s.Ref())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// orphan has another process create a sandbox and kills that process with SIGKILL.
func orphan(t *testing.T, h *sandboxtest.Host, main *guest.Start) sandbox.Ref {
	t.Helper()
	c := h.Config()
	order, err := json.Marshal(creatorOrder{
		ID: c.ID, Lower: c.Lower, StateDir: c.StateDir, RunDir: c.RunDir, Group: h.Parent, IDBase: c.IDBase,
		Init: sandboxtest.Init(t), Main: main,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), creatorEnv+"="+string(order))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, rerr := bufio.NewReader(out).ReadBytes('\n')
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the creator ended by itself")
	}
	var ref sandbox.Ref
	if err := errors.Join(rerr, json.Unmarshal(line, &ref)); err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestOpen_findsWhatOutlivedItsCreator(t *testing.T) {
	h := sandboxtest.NewHost(t)
	ref := orphan(t, h, nil)
	s, err := sandbox.Open(ref, h.Cgroups)
	if err != nil {
		t.Fatal(err)
	}
	if got := sandboxtest.Shell(t, s, "", "echo still here"); got != "still here\n" {
		t.Errorf("it says %q", got)
	}
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	if s, err = sandbox.Open(ref, h.Cgroups); err != nil {
		t.Fatal(err)
	}
	sandboxtest.Release(t, s)
}

func TestOpen_tellsHowTheAbsentEnded(t *testing.T) {
	h := sandboxtest.NewHost(t)
	ref := orphan(t, h, &guest.Start{Argv: []string{"/bin/bash", "-c", "sleep 0.3; exit 5"}})
	deadline := time.Now().Add(10 * time.Second)
	for unix.Kill(ref.PID, 0) == nil && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	s, err := sandbox.Open(ref, h.Cgroups)
	if err != nil {
		t.Fatal(err)
	}
	awaitDone(t, s)
	if e := s.Exit(); e.Record == nil || e.Record.Code != 5 || e.Waited {
		t.Errorf("exit is %+v, record %+v", e, e.Record)
	}
	sandboxtest.Release(t, s)
}

func TestOpen_neverTakesAnotherProcess(t *testing.T) {
	h := sandboxtest.NewHost(t)
	s := h.Create(t, h.Config())
	for _, tt := range []struct {
		name   string
		change func(*sandbox.Ref)
		reboot bool
	}{
		{"same number, other start", func(r *sandbox.Ref) { r.StartTime-- }, false},
		{"this process", func(r *sandbox.Ref) { r.PID = os.Getpid() }, false},
		{"no such process", func(r *sandbox.Ref) { r.PID = 1 << 22 }, false},
		{"before a reboot", func(r *sandbox.Ref) { r.BootID = "other" }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref := s.Ref()
			tt.change(&ref)
			o, err := sandbox.Open(ref, h.Cgroups)
			if err != nil {
				t.Fatal(err)
			}
			awaitDone(t, o)
			if o.Exit().Rebooted != tt.reboot {
				t.Errorf("exit is %+v", o.Exit())
			}
		})
	}
	sandboxtest.Shell(t, s, "", "true")
}

func TestSweep_removesWhatNobodyKeeps(t *testing.T) {
	h := sandboxtest.NewHost(t)
	lost, kept := orphan(t, h, nil), orphan(t, h, nil)
	if err := os.Mkdir(filepath.Join(h.StateDir, "not-a-sandbox"), 0o700); err != nil {
		t.Fatal(err)
	}
	removed, err := sandbox.Sweep(t.Context(), h.StateDir, h.RunDir, h.Cgroups, func(id api.SandboxID) bool { return id == kept.ID })
	if err != nil {
		t.Fatal(err)
	}
	if len(removed) != 1 || removed[0] != lost.ID {
		t.Errorf("removed %v, want %s", removed, lost.ID)
	}
	if _, err := os.Stat(filepath.Join(h.StateDir, "not-a-sandbox")); err != nil {
		t.Error(err)
	}
	s, err := sandbox.Open(kept, h.Cgroups)
	if err != nil {
		t.Fatal(err)
	}
	sandboxtest.Shell(t, s, "", "true")
	sandboxtest.Release(t, s)
	if err := os.Remove(filepath.Join(h.StateDir, "not-a-sandbox")); err != nil {
		t.Error(err)
	}
}
