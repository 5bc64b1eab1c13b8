package pager

import (
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func socketpair(t *testing.T) (ours, theirs int) {
	t.Helper()
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	t.Cleanup(func() { _, _ = unix.Close(sp[0]), unix.Close(sp[1]) })
	return sp[0], sp[1]
}

// More descriptors than one message takes arrive at their numbers, each the one that it was; the places that were kept are theirs.
func TestHandOver_putsEachAtItsNumber(t *testing.T) {
	ours, theirs := socketpair(t)
	at, inode := map[int]int{}, map[int]uint64{}
	for range 2*handedMax + 3 {
		var p [2]int
		must.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
		kept, err := unix.FcntlInt(uintptr(theirs), unix.F_DUPFD_CLOEXEC, 500)
		must.NoError(t, err)
		t.Cleanup(func() { _, _, _ = unix.Close(p[0]), unix.Close(p[1]), unix.Close(kept) })
		var st unix.Stat_t
		must.NoError(t, unix.Fstat(p[0], &st))
		at[kept], inode[kept] = p[0], st.Ino
	}
	must.NoError(t, HandOver(ours, at))
	must.NoError(t, receive(theirs))
	for n, want := range inode {
		var st unix.Stat_t
		must.NoError(t, unix.Fstat(n, &st))
		must.Eq(t, want, st.Ino)
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		must.NoError(t, err)
		must.Eq(t, unix.FD_CLOEXEC, flags)
	}
}

func TestHandOver_refusesWhatIsNone(t *testing.T) {
	for name, tc := range map[string]struct {
		send func(socket int) error
		says string
	}{
		"nobody is there any more": {func(socket int) error { return unix.Shutdown(socket, unix.SHUT_RDWR) }, errAlone.Error()},
		"numbers without descriptors": {func(socket int) error {
			return unix.Sendmsg(socket, make([]byte, handed), nil, nil, 0)
		}, "0 parts"},
		"more numbers than descriptors": {func(socket int) error {
			return unix.Sendmsg(socket, make([]byte, 2*handed), unix.UnixRights(socket), nil, 0)
		}, "8 bytes has 1 descriptors"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := socketpair(t)
			must.NoError(t, tc.send(ours))
			must.ErrorContains(t, receive(theirs), tc.says)
		})
	}
}
