package osthread_test

import (
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

func TestShortTurns_keepNiceAndReachNewThreads(t *testing.T) {
	before, err := unix.SchedGetAttr(0, 0)
	must.NoError(t, err)
	must.NoError(t, osthread.ShortTurns())
	check := func(where string) {
		tid := unix.Gettid()
		after, err := unix.SchedGetAttr(tid, 0)
		must.NoError(t, err)
		must.Eq(t, before.Policy, after.Policy, must.Sprint(where))
		must.Eq(t, before.Nice, after.Nice, must.Sprint(where))
		if before.Runtime != 0 { // a kernel that has turns
			must.Eq(t, 100_000, after.Runtime, must.Sprint(where))
		}
	}
	check("here")
	runtime.LockOSThread() // so that the next one is another thread
	defer runtime.UnlockOSThread()
	osthread.ThrowAway(func() { check("a new thread") })
}
