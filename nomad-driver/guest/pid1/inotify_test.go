package pid1

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// event is one as the kernel writes it: a header, and a name that is filled up with zeros.
func event(wd int32, mask uint32, name string, pad int) []byte {
	b := make([]byte, unix.SizeofInotifyEvent, unix.SizeofInotifyEvent+len(name)+pad)
	binary.NativeEndian.PutUint32(b, uint32(wd))
	binary.NativeEndian.PutUint32(b[4:], mask)
	binary.NativeEndian.PutUint32(b[12:], uint32(len(name)+pad))
	return append(append(b, name...), make([]byte, pad)...)
}

// Whatever is read, each event takes some of it, and names have an end.
func FuzzNextEvent(f *testing.F) {
	two := append(event(1, unix.IN_CREATE, "a", 15), event(2, unix.IN_DELETE, "", 0)...)
	f.Add(two)
	f.Add(two[:len(two)-1])
	f.Add(event(-1, unix.IN_Q_OVERFLOW, "", 0))
	lie := event(1, unix.IN_CREATE, "a", 15)
	binary.NativeEndian.PutUint32(lie[12:], 1<<32-1)
	f.Add(lie)
	f.Fuzz(func(t *testing.T, buf []byte) {
		for {
			e, rest, ok := nextEvent(buf)
			if !ok {
				return
			}
			if len(rest)+unix.SizeofInotifyEvent+len(e.name) > len(buf) || strings.IndexByte(e.name, 0) >= 0 {
				t.Fatalf("%d bytes of %d are left after %+q", len(rest), len(buf), e.name)
			}
			buf = rest
		}
	})
}
