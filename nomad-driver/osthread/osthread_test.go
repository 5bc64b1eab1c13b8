package osthread

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestThrowAway_neverTakesTheMainThread(t *testing.T) {
	for range 200 {
		var tid int
		ThrowAway(func() { tid = unix.Gettid() })
		must.NotEq(t, unix.Getpid(), tid)
	}
}

func TestThrowAway_endsTheThread(t *testing.T) {
	var tid int
	ThrowAway(func() { tid = unix.Gettid() })
	for {
		if _, err := os.Stat("/proc/self/task/" + strconv.Itoa(tid)); os.IsNotExist(err) {
			return
		}
		runtime.Gosched()
		select {
		case <-t.Context().Done():
			t.Fatal("the thread is still there")
		default:
		}
	}
}
