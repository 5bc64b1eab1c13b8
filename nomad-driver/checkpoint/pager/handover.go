package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A server is started before there is anything to serve, since its start takes longer than all that it is told then. The userfaultfds come over a socket, its
// standard input, as messages of handed bytes for each descriptor; the last one is begin alone.

const (
	handed    = 4  // bytes of a message for each descriptor: the number that the state has for it
	handedMax = 64 // descriptors of a message: the kernel takes 253
)

var begin = []byte{1}

// HandOver gives a server that waits at the other end of socket the descriptors at[n], which it is to have as n, and has it begin. It must have been started with
// something else at each n: so nothing of its own is there.
func HandOver(socket int, at map[int]int) error {
	var numbers []int
	for n := range at {
		numbers = append(numbers, n)
	}
	for some := range slices.Chunk(numbers, handedMax) {
		var body []byte
		var fds []int
		for _, n := range some {
			body = binary.LittleEndian.AppendUint32(body, uint32(n))
			fds = append(fds, at[n])
		}
		if err := unix.Sendmsg(socket, body, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
			return fmt.Errorf("hand over %d userfaultfds: %w", len(fds), err)
		}
	}
	if err := unix.Sendmsg(socket, begin, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("have the page server begin: %w", err)
	}
	return nil
}

// errAlone is what a server ends with whose starter has ended before it was to begin.
var errAlone = errors.New("whoever started it has ended before it was to begin")

// receive puts what is handed over where it belongs, and returns when it is to begin.
func receive(socket int) error {
	body, oob := make([]byte, handed*handedMax), make([]byte, unix.CmsgSpace(4*handedMax))
	for {
		n, oobn, _, _, err := unix.Recvmsg(socket, body, oob, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("receive userfaultfds: %w", err)
		case n == 0:
			return errAlone
		case n == len(begin):
			return nil
		}
		if err := place(body[:n], oob[:oobn]); err != nil {
			return err
		}
	}
}

// place puts the descriptors of a message at their numbers.
func place(body, oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 {
		return errors.Join(fmt.Errorf("message has %d parts beside it, not one", len(msgs)), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds)*handed != len(body) {
		return errors.Join(fmt.Errorf("message of %d bytes has %d descriptors", len(body), len(fds)), err)
	}
	for i, fd := range fds {
		n := int(binary.LittleEndian.Uint32(body[i*handed:]))
		if err := unix.Dup3(fd, n, unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("have userfaultfd %d: %w", n, err)
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}
