package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
)

// Listener accepts connections of plain TCP as *Inlet, and all others as they are.
type Listener struct{ net.Listener }

// Accept implements net.Listener.
func (l Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		return &Inlet{TCPConn: t}, err
	}
	return c, err
}

// Inlet is a server's connection whose bytes the kernel can put into a file by itself.
type Inlet struct {
	*net.TCPConn
	aside atomic.Pointer[pipe] // where the bytes of long reads go; nil: to the reader
}

// pipe is where bytes wait in the kernel. It belongs to one goroutine.
type pipe struct {
	r, w int
	held int // bytes
}

// pipeBytes is how much a pipe holds, of bytes that come in full pages.
const pipeBytes = 1 << 20

// minAside is the least room of a read that may be filled with nothing: what a server reads for itself (a request's header, what a chunk's length is in)
// it reads in pieces of 4 KiB.
const minAside = 64 << 10

// Read implements io.Reader. While bytes are put aside, a long read returns how many there are, and leaves p as it is.
func (c *Inlet) Read(p []byte) (int, error) {
	aside := c.aside.Load()
	if aside == nil || len(p) < minAside {
		return c.TCPConn.Read(p)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int64
	var serr error
	err = raw.Read(func(fd uintptr) bool {
		n, serr = unix.Splice(int(fd), nil, aside.w, nil, min(len(p), pipeBytes), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		for serr == unix.EINTR { //nolint:errorlint // a number of the kernel
			n, serr = unix.Splice(int(fd), nil, aside.w, nil, min(len(p), pipeBytes), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		}
		return serr != unix.EAGAIN //nolint:errorlint // a number of the kernel
	})
	switch {
	case err != nil:
		return 0, err
	case serr != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("splice", serr)}
	case n == 0:
		return 0, io.EOF
	}
	aside.held += int(n)
	return int(n), nil
}

type inletKey struct{}

type straightKey struct{}

// Straight returns the context of a request for being passed on by a Transport: where the request's body is nothing but the next bytes of a connection
// that is an Inlet, they need not be copied on their way into a file. r must be as the server has it, with WithConn's context.
func Straight(r *http.Request) context.Context {
	c, ok := r.Context().Value(inletKey{}).(*Inlet)
	if !ok || r.ProtoMajor != 1 || r.ContentLength < MinBytes {
		return r.Context()
	}
	return context.WithValue(r.Context(), straightKey{}, c)
}

// begin puts the bytes of the connection aside until end.
func (c *Inlet) begin() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// It holds 64 KiB where it must not grow.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeBytes)
	p := &pipe{r: fds[0], w: fds[1]}
	c.aside.Store(p)
	return p, nil
}

func (c *Inlet) end(p *pipe) {
	c.aside.Store(nil)
	_, _ = unix.Close(p.r), unix.Close(p.w)
}

// flush moves what a pipe holds to f. Where the file system takes nothing from pipes, it is copied through buf.
func (p *pipe) flush(f *os.File, buf []byte) error {
	return disk.WithinLimits(func() error {
		for p.held > 0 {
			n, err := unix.Splice(p.r, nil, int(f.Fd()), nil, p.held, unix.SPLICE_F_MOVE)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EINVAL):
				return p.copy(f, buf)
			case err != nil:
				return os.NewSyscallError("splice", err)
			case n == 0:
				return fmt.Errorf("a pipe is empty that should have %d bytes", p.held)
			}
			p.held -= int(n)
		}
		return nil
	})
}

func (p *pipe) copy(f *os.File, buf []byte) error {
	for p.held > 0 {
		n, err := unix.Read(p.r, buf[:min(len(buf), p.held)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n > 0 {
			_, err = f.Write(buf[:n])
		}
		if err != nil {
			return err
		}
		p.held -= n
	}
	return nil
}
