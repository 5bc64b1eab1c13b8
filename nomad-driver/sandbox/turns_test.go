package sandbox_test

import (
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// turns returns the length of a thread's turns of the processor, in nanoseconds, and how it is scheduled.
func turns(t *testing.T, tid int) *unix.SchedAttr {
	t.Helper()
	attr, err := unix.SchedGetAttr(tid, 0)
	must.NoError(t, err)
	return attr
}

func TestTurns_areShortForPID1AndOrdinaryForPrograms(t *testing.T) {
	h := sandboxtest.NewHost(t)
	known := turns(t, 0).Runtime != 0      // since Linux 6.12
	must.NoError(t, osthread.ShortTurns()) // as the node has them
	short := turns(t, 0).Runtime
	s := h.Create(t, h.Config())
	_, err := s.Guest().Start(t.Context(), guest.Start{Argv: []string{"/bin/bash", "-c", "sleep 1000 & sleep 1000"}})
	must.NoError(t, err)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", s.Ref().PID))
	must.NoError(t, err)
	for _, path := range threads {
		tid, err := strconv.Atoi(filepath.Base(path))
		must.NoError(t, err)
		must.Eq(t, short, turns(t, tid).Runtime, must.Sprintf("thread %d of PID 1", tid))
	}
	programs := 0
	for programs < 3 { // bash and its two
		pids := groupProcesses(t, h, s)
		programs = len(pids) - 1
		for _, pid := range pids {
			if pid == s.Ref().PID {
				continue
			}
			got := turns(t, pid)
			must.Eq(t, known, got.Runtime > short, must.Sprintf("program %d", pid))
			must.Eq(t, 0, got.Flags&unix.SCHED_FLAG_RESET_ON_FORK)
		}
	}
}

func groupProcesses(t *testing.T, h *sandboxtest.Host, s *sandbox.Sandbox) []int {
	t.Helper()
	group, err := h.Cgroups.Open(string(s.Ref().ID))
	must.NoError(t, err)
	pids, err := group.Processes()
	must.NoError(t, err)
	return pids
}
