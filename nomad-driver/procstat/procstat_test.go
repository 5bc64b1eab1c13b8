package procstat

import (
	"os"
	"runtime"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// rest is a line behind its command.
const rest = " S 1 7 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0\n"

func TestParse_believesNoCommand(t *testing.T) {
	for _, command := range []string{"(bash)", "(a b)", "()", "(a) Z 1 2 3)", "(x) R 1 1 1 1)", "())))", "(\x01\xff) X)", "(a)\n)"} {
		s, err := parse([]byte("12 " + command + rest))
		must.NoError(t, err, must.Sprint(command))
		must.Eq(t, Stat{State: 'S', Session: 9, Start: 4711}, s, must.Sprint(command))
		must.False(t, s.Ended())
	}
	for _, line := range []string{"", "12 (a", "12 (a) S", "12 (a) S 1 7 x 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711", "12 (a) S 1 7 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 -1"} {
		_, err := parse([]byte(line))
		must.Error(t, err, must.Sprint(line))
	}
}

func TestOf_isThatOfThisProcessWhateverItsThreadsAreCalled(t *testing.T) {
	own, err := Of(os.Getpid())
	must.NoError(t, err)
	must.Greater(t, 0, own.Start)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := os.ReadFile("/proc/thread-self/comm")
	must.NoError(t, err)
	defer func() { must.NoError(t, os.WriteFile("/proc/thread-self/comm", before, 0)) }()
	must.NoError(t, os.WriteFile("/proc/thread-self/comm", []byte("a) Z 1 2 3 4"), 0))
	thread, err := OfThread(os.Getpid(), unix.Gettid())
	must.NoError(t, err)
	must.Eq(t, 'R', rune(thread.State))
	must.Eq(t, own.Session, thread.Session)
	must.GreaterEq(t, own.Start, thread.Start)
}

func TestOf_noProcess(t *testing.T) {
	_, err := Of(1 << 30)
	must.ErrorIs(t, err, os.ErrNotExist)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("1 (a) b) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24"))
	f.Add([]byte("1 (x"))
	f.Add([]byte("1 (a) Z)" + rest))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parse(b); err == nil && s.State == 0 {
			t.Fatal("a line without a state was read")
		}
	})
}
