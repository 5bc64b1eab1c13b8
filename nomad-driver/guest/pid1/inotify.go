package pid1

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// nextEvent takes one event off what was read of an inotify descriptor, as inotify(7) describes it.
func nextEvent(buf []byte) (e rawEvent, rest []byte, ok bool) {
	if len(buf) < unix.SizeofInotifyEvent {
		return rawEvent{}, nil, false
	}
	order := binary.NativeEndian
	e = rawEvent{wd: int32(order.Uint32(buf)), mask: order.Uint32(buf[4:]), cookie: order.Uint32(buf[8:])}
	n := uint64(order.Uint32(buf[12:]))
	buf = buf[unix.SizeofInotifyEvent:]
	if n > uint64(len(buf)) {
		return rawEvent{}, nil, false
	}
	name, _, _ := bytes.Cut(buf[:n], []byte{0})
	e.name = string(name)
	return e, buf[n:], true
}
