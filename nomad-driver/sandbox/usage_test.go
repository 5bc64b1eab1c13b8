package sandbox_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"

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

// sampled waits until those descriptors are as they should be: the watch for lack of memory (oomWatch) opens one of the same
// group's files for a moment when it starts, in a goroutine of its own.
func sampled(t *testing.T, id string, pid int, want string, ok func([]string) bool) []string {
	t.Helper()
	var open []string
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { open = sampledFiles(t, id, pid); return ok(open) }), wait.Timeout(10*time.Second), wait.Gap(time.Millisecond)),
		must.Func(func() string { return fmt.Sprint(want, ", and open is ", open) }))
	return open
}

func none(open []string) bool { return len(open) == 0 }

func TestUsage_isReadFromFilesThatAreOpenUntilTheEnd(t *testing.T) {
	for _, name := range []string{"killed", "ends by itself", "detached"} {
		t.Run(name, func(t *testing.T) {
			h := sandboxtest.NewHost(t)
			s, err := sandbox.Create(t.Context(), h.Config())
			must.NoError(t, err)
			defer func() { must.NoError(t, s.Release(context.Background())) }()
			id, pid := string(s.Ref().ID), s.Ref().PID
			sampled(t, id, pid, "a short life costs none", none)
			first, err := s.Usage()
			must.NoError(t, err)
			must.Positive(t, first.PIDs)
			open := sampled(t, id, pid, "two to six", func(open []string) bool { return len(open) >= 2 && len(open) <= 6 })
			sandboxtest.Shell(t, s, "", "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done")
			second, err := s.Usage()
			must.NoError(t, err)
			must.Greater(t, first.CPUNanos, second.CPUNanos)
			sampled(t, id, pid, "the same files, no more", func(now []string) bool {
				return len(now) >= 2 && !slices.ContainsFunc(now, func(f string) bool { return !slices.Contains(open, f) })
			})
			switch name {
			case "killed":
				must.NoError(t, s.Kill(t.Context()))
			case "ends by itself":
				must.NoError(t, s.Guest().Shutdown(t.Context(), guest.ShutdownParams{}))
				<-s.Done()
			case "detached":
				letGo(t, s)
			}
			sampled(t, id, pid, "none", none)
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
