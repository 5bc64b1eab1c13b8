package checkpoint

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	core "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
)

// A process that was stopped by a signal (SIGSTOP, or ^Z in a terminal) and is frozen by cgroup v1 cannot be traced before it is thawed: the kernel has it change from one stop
// to the other first (ptrace_attach in kernel/ptrace.c, JOBCTL_TRAPPING), and whoever wants to trace it waits for that, where only SIGKILL reaches him. So a dump with such a process is one
// where the group is thawed while CRIU takes the processes one by one, which run on until they are taken, and frozen again before CRIU lets go of them.

const (
	// stuckAfter is how long CRIU may wait for one process to be traced: the others take microseconds.
	stuckAfter = 2 * time.Second
	stuckEvery = 250 * time.Millisecond
)

// Stopped reports whether one of these processes, which are frozen, was stopped by a signal before, or would be right after a thaw: one that a dump has let go of while it was frozen is not
// back where it was stopped. On a kernel that does not tell where processes wait it is false.
func Stopped(pids []int) bool {
	return slices.ContainsFunc(pids, func(pid int) bool { return waitsIn(pid) == "do_signal_stop" || letGo(pid) })
}

// letGo reports whether a process waits where its tracer has had it wait, though it has none any more: it is frozen, or about to run.
func letGo(pid int) bool {
	if waitsIn(pid) != "ptrace_stop" {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && bytes.Contains(b, []byte("\nTracerPid:\t0\n"))
}

const (
	settleTime  = time.Second
	settleEvery = 200 * time.Microsecond
)

// settle returns when none of these processes, which were thawed, is on its way any more from where a dump has let go of it. CRIU would take one that is about to stop for one that
// has stopped, and wait for it in vain.
func settle(pids []int) {
	for end := time.Now().Add(settleTime); time.Now().Before(end) && slices.ContainsFunc(pids, letGo); {
		time.Sleep(settleEvery)
	}
}

// waitsIn returns the function of the kernel that a process waits in; empty: it is not told.
func waitsIn(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if err != nil {
		return ""
	}
	return string(b)
}

// whenStuck calls f where a process waits for another one to be traced for too long. stop waits for it, and reports whether f was called.
func whenStuck(pid int, f func()) (stop func() bool) {
	quit, done := make(chan struct{}), make(chan struct{})
	var called atomic.Bool
	go func() {
		defer close(done)
		tick := time.NewTicker(stuckEvery)
		defer tick.Stop()
		var since time.Time
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			switch {
			case waitsIn(pid) != "ptrace_attach":
				since = time.Time{}
			case since.IsZero():
				since = time.Now()
			case time.Since(since) > stuckAfter:
				called.Store(true)
				f()
				return
			}
		}
	}()
	return func() bool {
		close(quit)
		<-done
		return called.Load()
	}
}

// coreMagic is that of an image of one thread, after commonMagic.
const coreMagic = 0x55053847

// taskStopped is the state of a process in its image: compel/include/uapi/task-state.h of CRIU.
const taskStopped = 3

// dumpedStopped reports whether a process was stopped by a signal, as its image has it.
func dumpedStopped(path string) (bool, error) {
	b, err := readImage(path, coreMagic, maxMM)
	if err != nil {
		return false, err
	}
	stopped := false
	err = eachEntry(b, func(entry []byte) error {
		var e core.CoreEntry
		err := proto.Unmarshal(entry, &e)
		stopped = e.GetTc().GetTaskState() == taskStopped
		return err
	})
	if err != nil {
		return false, fmt.Errorf("image %s: %w", filepath.Base(path), err)
	}
	return stopped, nil
}
