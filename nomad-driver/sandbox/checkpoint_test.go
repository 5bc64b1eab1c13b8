package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// engine returns the CRIU of the stack, or of PATH, or skips the test.
func engine(t *testing.T) *checkpoint.Engine {
	t.Helper()
	path := sandboxtest.CRIU(t)
	e, err := checkpoint.Open(t.Context(), path)
	must.NoError(t, err)
	t.Cleanup(e.Close)
	return e
}

func TestCheckpoint_restoreGoesOnWhereItWas(t *testing.T) {
	e := engine(t)
	h := sandboxtest.NewHost(t)
	c := h.Config()
	// A folder that is closed to the sandbox's ids, as an operator's may be.
	c.Init = closedInit(t)
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	sandboxtest.Shell(t, s, "", "echo kept > /var/file; echo tmp > /tmp/file")
	p, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "n=0; while :; do n=$((n+1)); echo $n >> /var/n; sleep 0.01; done"}})
	must.NoError(t, err)

	// Twice: what is restored must itself be one that can be checkpointed.
	for round := range 2 {
		dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), "c"+strconv.Itoa(round)))
		s = roundTrip(t, e, s, c, dir)
		must.Eq(t, "kept\ntmp\n", sandboxtest.Shell(t, s, "", "cat /var/file /tmp/file"))
		info, err := s.Guest().Info(t.Context())
		must.NoError(t, err)
		must.Eq(t, string(c.ID), info.SandboxID)
		before := sandboxtest.Shell(t, s, "", "tail -n1 /var/n")
		must.Eq(t, "", sandboxtest.Shell(t, s, "", "for i in $(seq 500); do [ \"$(tail -n1 /var/n)\" -gt "+strings.TrimSpace(before)+" ] && exit; sleep 0.01; done; echo stands still"))
	}
	list, err := s.Guest().List(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(list, func(i guest.ProcessInfo) bool { return i.PID == p.PID })
	must.NonNegative(t, i)
	must.Nil(t, list[i].Exit)
}

// TestRestore_isAsHardAsACreate tries the walls that CRIU knows nothing of, before and after, with every capability and every system call, so
// that they stand alone.
func TestRestore_isAsHardAsACreate(t *testing.T) {
	e := engine(t)
	h := sandboxtest.NewHost(t)
	for _, landlock := range []bool{true, false} { // without it the attempts must work, or they show nothing
		if landlock && landlockABI(t) < 2 {
			continue
		}
		sandbox.Without(t, sandbox.Walls{Seccomp: true, Capabilities: true, Landlock: !landlock})
		c := h.Config()
		c.NodeOwned = !sandbox.CanDump()
		s, err := sandbox.Create(t.Context(), c)
		must.NoError(t, err)
		defer func() { sandboxtest.Release(t, s) }()

		const attempt = "mount -t tmpfs none /mnt 2>/dev/null; echo mount $?; umount /mnt 2>/dev/null; mount -o remount,bind,rw /proc/sys 2>/dev/null; echo remount $?"
		try := func() string { return sandboxtest.Shell(t, s, "", "cat /proc/self/cgroup; mkdir -p /mnt; "+attempt) }
		before := try()
		must.StrNotContains(t, before, string(c.ID), must.Sprint("the path of the group shows"))
		must.Eq(t, landlock, !strings.Contains(before, "mount 0"), must.Sprint(before))
		// A process from before is held as new ones are, and of one domain with them.
		sandboxtest.Shell(t, s, "", "mkfifo /tmp/go /tmp/came")
		old, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "read x < /tmp/go; { " + attempt + "; } > /tmp/came; exec sleep 1000"}})
		must.NoError(t, err)

		for round := range 2 { // what is restored must itself be one that can be checkpointed
			s = roundTrip(t, e, s, c, sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), fmt.Sprint("c", landlock, round))))
			must.Eq(t, before, try(), must.Sprint("round ", round, " with landlock ", landlock))
		}
		came := sandboxtest.Shell(t, s, "", "echo > /tmp/go; cat /tmp/came")
		must.StrHasSuffix(t, came, before, must.Sprint("of a process from before, with landlock ", landlock))
		pid := strconv.Itoa(int(old.PID))
		must.Eq(t, "seen\n", sandboxtest.Shell(t, s, "", "for i in $(seq 500); do [ \"$(readlink /proc/"+pid+"/exe)\" = /bin/sleep ] && break; sleep 0.01; done; kill "+pid+" && echo seen"))
		// Terminals take their ioctls, and files their moves.
		out, err := sandboxtest.Exec(t.Context(), s, guest.Start{Argv: []string{"/bin/bash", "-c", "test -t 0 && mkdir -p /a /b && echo x > /a/f && mv /a/f /b/f && echo fine"}, TTY: true})
		must.NoError(t, err)
		must.StrContains(t, out.Stdout, "fine")
	}
}

// closedInit opens an init binary in a folder that only root may search.
func closedInit(t *testing.T) *sandbox.InitBinary {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "closed")
	must.NoError(t, os.Mkdir(dir, 0o700))
	b, err := os.ReadFile(sandboxtest.Init(t))
	must.NoError(t, err)
	path := filepath.Join(dir, "soulbox-init")
	must.NoError(t, os.WriteFile(path, b, 0o755))
	must.NoError(t, os.Chmod(path, 0o755))
	init, err := sandbox.OpenInit(path)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, init.Close()) })
	return init
}

func startDump(t testing.TB, e *checkpoint.Engine) *checkpoint.Dumper {
	t.Helper()
	criu, err := e.StartDump(t.Context(), nil)
	must.NoError(t, err)
	return criu
}

// roundTrip takes a sandbox to disk and back.
func roundTrip(t *testing.T, e *checkpoint.Engine, s *sandbox.Sandbox, c sandbox.Config, dir sandbox.CheckpointDir) *sandbox.Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must.NoError(t, s.Park(ctx))
	must.NoError(t, s.Freeze(ctx))
	obstacles, err := s.Uncheckpointable()
	must.NoError(t, err)
	must.Len(t, 0, obstacles)
	d, err := s.Checkpoint(ctx, startDump(t, e), dir, sandbox.CheckpointOptions{})
	must.NoError(t, err)
	must.NoError(t, s.End(ctx))
	r, err := sandbox.Restore(ctx, sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d})
	must.NoError(t, err)
	must.NoError(t, r.Wake(ctx, nil))
	return r
}
