package sandbox_test

import (
	"context"
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
	d, err := s.Checkpoint(ctx, e, dir, nil)
	must.NoError(t, err)
	must.NoError(t, s.End(ctx))
	r, err := sandbox.Restore(ctx, sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d})
	must.NoError(t, err)
	must.NoError(t, r.Wake(ctx, nil))
	return r
}
