package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// mostAhead is how far beyond what is written a Writer has blocks allocated, in bytes.
const mostAhead = 16 << 20

// Writer writes a file from its begin on, WithinLimits.
//
// It has blocks allocated before it writes into them, at most as many more as are written already. ext4 starts to write a file to the disk at the moment
// in which it takes the place of another, if it has bytes without blocks then: that took two fifths of the time of an upload that replaces a file. Whose
// file system cannot do it, or has no room for so many, has blocks allocated as they are written.
type Writer struct {
	f                  *os.File
	written, allocated int64
	never              bool // allocate ahead
}

// NewWriter returns a writer of f, which is empty. It stays the caller's to close, after Finish.
func NewWriter(f *os.File) *Writer { return &Writer{f: f} }

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (n int, err error) {
	err = WithinLimits(func() error {
		w.allocate(int64(len(p)))
		n, err = w.f.Write(p)
		return err
	})
	w.written += int64(n)
	return n, err
}

// allocate sees that the next n bytes have blocks. That it fails is seen where the bytes are written.
func (w *Writer) allocate(n int64) {
	if w.never || n == 0 || w.written+n <= w.allocated {
		return
	}
	from := max(w.written, w.allocated)
	more := max(w.written+n-from, min(w.written, mostAhead))
	w.allocated = from + more // what fails may have got a part of it
	// Nor is it tried again after a signal: tmpfs then gives back all that it had allocated, and the runtime's signals come faster than a slow machine
	// allocates.
	w.never = w.fallocate(from, more) != nil
}

func (w *Writer) fallocate(from, n int64) error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var aerr error
	if err := raw.Control(func(fd uintptr) { aerr = unix.Fallocate(int(fd), unix.FALLOC_FL_KEEP_SIZE, from, n) }); err != nil {
		return err
	}
	return aerr
}

// Finish gives back what was allocated beyond the file's end.
func (w *Writer) Finish() error {
	if w.allocated <= w.written {
		return nil
	}
	w.allocated = w.written
	return w.f.Truncate(w.written) // frees blocks beyond the end also where the size stays
}
