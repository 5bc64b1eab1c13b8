package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

var errCancelled = errors.New("input cancelled")

// input reads a file in such a way that a Read that waits can be ended. Terminals and inherited pipes are in blocking mode,
// and setting them otherwise would change them for the shell too: so poll first.
type input struct {
	file *os.File
	wake int // eventfd
}

// newInput returns nil for a nil file.
func newInput(f *os.File) (*input, error) {
	if f == nil {
		return nil, nil
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &input{file: f, wake: wake}, nil
}

// Read reads what is there, waiting for the first byte. errCancelled means that cancel was called.
func (i *input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{
		{Fd: int32(i.file.Fd()), Events: unix.POLLIN},
		{Fd: int32(i.wake), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, fmt.Errorf("poll: %w", err)
		}
		if fds[1].Revents != 0 {
			return 0, errCancelled
		}
		n, err := unix.Read(int(i.file.Fd()), p)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return 0, fmt.Errorf("read input: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// cancel ends the Read that waits and every later one.
func (i *input) cancel() {
	if i == nil {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(i.wake, one[:]) // an eventfd takes the first write always
}

// close frees what the input holds beside the file. No Read may be on its way.
func (i *input) close() {
	if i != nil {
		_ = unix.Close(i.wake)
	}
}
