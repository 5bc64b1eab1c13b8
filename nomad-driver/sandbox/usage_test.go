package sandbox_test

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// sampledFiles lists the descriptors of this process that a sandbox's usage is read from.
func sampledFiles(t *testing.T, id string, pid int) (open []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	for _, e := range entries {
		path, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(path, "/sys/fs/cgroup/") && strings.Contains(path, "/"+id+"/") ||
			strings.HasPrefix(path, "/proc/"+strconv.Itoa(pid)+"/")) {
			open = append(open, path)
		}
	}
	return open
}

func TestUsage_isReadFromFilesThatAreOpenUntilTheEnd(t *testing.T) {
	for _, name := range []string{"killed", "ends by itself", "detached"} {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost(t)
			s, err := sandbox.Create(t.Context(), h.Config())
			must.NoError(t, err)
			defer func() { must.NoError(t, s.Release(context.Background())) }()
			id, pid := string(s.Ref().ID), s.Ref().PID
			must.SliceEmpty(t, sampledFiles(t, id, pid)) // a short life costs none
			first, err := s.Usage()
			must.NoError(t, err)
			must.Positive(t, first.PIDs)
			open := sampledFiles(t, id, pid)
			must.Between(t, 2, len(open), 6, must.Sprint(open))
			sandboxtest.Shell(t, s, "", "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done")
			second, err := s.Usage()
			must.NoError(t, err)
			must.Greater(t, first.CPUNanos, second.CPUNanos)
			must.Eq(t, open, sampledFiles(t, id, pid), must.Sprint("the same files, no more"))
			switch name {
			case "killed":
				must.NoError(t, s.Kill(t.Context()))
			case "ends by itself":
				must.NoError(t, s.Guest().Shutdown(t.Context(), guest.ShutdownParams{}))
				<-s.Done()
			case "detached":
				letGo(t, s)
			}
			must.SliceEmpty(t, sampledFiles(t, id, pid))
			_, err = s.Usage()
			must.ErrorContains(t, err, "it has ended")
			if name == "detached" {
				again, err := sandbox.Open(s.Ref(), h.Cgroups)
				must.NoError(t, err)
				third, err := again.Usage()
				must.NoError(t, err)
				must.GreaterEq(t, second.CPUNanos, third.CPUNanos)
				s = again
			}
		})
	}
}
