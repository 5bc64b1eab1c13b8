package handover

import (
	"errors"
	"io"
	"os"
)

// File is a response's body that came as a descriptor.
//
// Whoever passes it on reads it into a buffer and writes that, which is as fast as to send it from a mapping, measured in place; and a file that is cut
// meanwhile is an error of a read, not a fault.
type File struct {
	f    *os.File
	next int64
	left int64
}

// Read implements io.Reader.
func (b *File) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.f.ReadAt(p[:min(int64(len(p)), b.left)], b.next)
	b.next, b.left = b.next+int64(n), b.left-int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = io.ErrUnexpectedEOF // it became shorter
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *File) Close() error { return b.f.Close() }
