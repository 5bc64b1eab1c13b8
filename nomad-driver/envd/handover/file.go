package handover

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// File is a response's body that came as a descriptor. It is read like any other, or sent with SendTo.
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

// window is how many bytes are mapped at once.
const window = 2 << 20

// SendTo writes what is left to w, whose connection must be one of plain TCP: the kernel copies from the page cache to the socket, once. A file that
// becomes shorter meanwhile is an error of the write then, while whoever looks at the bytes himself, as TLS does, would be sent a SIGBUS.
// It stops between two pieces when ctx has ended.
func (b *File) SendTo(ctx context.Context, w http.ResponseWriter) error {
	// What is buffered would have the first bytes copied behind it.
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	for b.left >= MinBytes {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := b.sendWindow(w)
		b.next, b.left = b.next+n, b.left-n
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EACCES) {
			break // a file system that maps no files
		}
		if err != nil {
			return err
		}
	}
	buf := getBuffer()
	defer putBuffer(buf)
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{b}, buf[:])
	return err
}

// sendWindow sends one mapping of the file.
func (b *File) sendWindow(w io.Writer) (n int64, err error) {
	skip := b.next % int64(os.Getpagesize())
	size := min(b.left, window) + skip
	m, err := unix.Mmap(int(b.f.Fd()), b.next-skip, int(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return 0, os.NewSyscallError("mmap", err)
	}
	defer func() {
		if uerr := unix.Munmap(m); err == nil && uerr != nil {
			err = os.NewSyscallError("munmap", uerr)
		}
	}()
	// For whatever is between here and the system call, and looks at the bytes all the same.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, fault := r.(runtime.Error); !fault {
				panic(r)
			}
			err = io.ErrUnexpectedEOF
		}
	}()
	sent, err := w.Write(m[skip:])
	if errors.Is(err, unix.EFAULT) {
		err = io.ErrUnexpectedEOF
	}
	return int64(sent), err
}
