package sandbox_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// standing returns the pids of the CRIUs that this process has started and that wait to be asked, once there are that many.
func standing(t *testing.T, n int) []int {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		var pids []int
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		must.NoError(t, err)
		for _, path := range tasks {
			b, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			must.NoError(t, err)
			for _, word := range strings.Fields(string(b)) {
				var pid int
				_, err := fmt.Sscan(word, &pid)
				must.NoError(t, err)
				line, _ := os.ReadFile("/proc/" + word + "/cmdline")
				call, _ := os.ReadFile("/proc/" + word + "/syscall")
				if strings.Contains(string(line), "\x00swrk\x00") && strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_RECVFROM, " ")) {
					pids = append(pids, pid)
				}
			}
		}
		if len(pids) == n {
			return pids
		}
		must.True(t, time.Now().Before(end), must.Sprintf("%d stand ready, want %d", len(pids), n))
	}
}

// rootMount returns the line of the root.
func rootMount(t *testing.T, mounts []byte) string {
	t.Helper()
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[4] == "/" {
			return line
		}
	}
	t.Fatal("no root is mounted")
	return ""
}

// A restore is done by the CRIU that stands ready, and another one takes its place; where it has been killed, or there is none, one is started.
func TestRestore_byTheOneThatStandsReady(t *testing.T) {
	h := sandboxtest.NewHost(t)
	e := engine(t) // which ends before the host is looked at
	e.StandBy()
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	sandboxtest.Shell(t, s, "", "echo kept > /tmp/file")
	before := sandboxtest.Shell(t, s, "", "cat /proc/1/cgroup; grep -E 'Seccomp|Cap|NoNew' /proc/1/status")
	restore := func(name string) (criu int) {
		dir := sandbox.CheckpointDir(filepath.Join(filepath.Dir(h.StateDir), name))
		d := takeDown(t, e, s, dir)
		r, err := sandbox.Restore(t.Context(), sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d, Started: func(p *os.Process) error {
			criu = p.Pid
			return nil
		}})
		must.NoError(t, err)
		s = r
		must.NoError(t, s.Wake(t.Context(), nil))
		must.Eq(t, "kept\n", sandboxtest.Shell(t, s, "", "cat /tmp/file"))
		must.Eq(t, before, sandboxtest.Shell(t, s, "", "cat /proc/1/cgroup; grep -E 'Seccomp|Cap|NoNew' /proc/1/status"))
		return criu
	}
	ready := standing(t, 1)
	must.Eq(t, ready[0], restore("first"))
	next := standing(t, 1)
	must.NotEq(t, ready, next)
	must.NoError(t, unix.Kill(next[0], unix.SIGKILL))
	must.NotEq(t, next[0], restore("killed"))
	must.NoError(t, e.Spare())
	last := standing(t, 1)
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", last[0]))
	must.NoError(t, err)
	must.StrNotContains(t, string(mounts), filepath.Dir(h.StateDir))
	machine, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	must.Eq(t, strings.Contains(rootMount(t, machine), " shared:"), strings.Contains(rootMount(t, mounts), " master:"), must.Sprint("it follows the machine's mounts"))
	e.Close()
	standing(t, 0)
	must.NotEq(t, last[0], restore("closed"))
}
