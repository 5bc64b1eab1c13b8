package handover

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a client's connection that takes descriptors.
type Conn struct {
	*net.UnixConn
	mu   sync.Mutex
	file *os.File // the last that came and was not taken; guarded by mu
}

// NewConn returns a connection that takes descriptors beside what is read.
func NewConn(c *net.UnixConn) *Conn { return &Conn{UnixConn: c} }

// Read implements io.Reader.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := c.ReadMsgUnix(p, oob)
	ordered()
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errTruncated
	}
	if n == 0 && err == nil || errors.Is(err, io.EOF) {
		err = io.EOF // as itself: ReadMsgUnix wraps it
	}
	return max(n, 0), err // it is -1 with an error
}

var errTruncated = &net.OpError{Op: "read", Net: "unix", Err: os.NewSyscallError("recvmsg: descriptors", unix.EMFILE)}

// keep takes the descriptors out of control messages. Of several the last counts.
func (c *Conn) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.put(os.NewFile(uintptr(fd), "handed over"))
		}
	}
}

func (c *Conn) put(f *os.File) {
	c.mu.Lock()
	old := c.file
	c.file = f
	c.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

// take returns the descriptor that came, which is the caller's then, or nil.
func (c *Conn) take() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file
	c.file = nil
	return f
}

// Close implements io.Closer.
func (c *Conn) Close() error {
	c.put(nil)
	return c.UnixConn.Close()
}

// ReadFrom implements io.ReaderFrom: bodies are sent in pieces of copyBytes, for net/http's own, of 32 KiB, cost eight times the system calls.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	buf := getBuffer()
	defer putBuffer(buf)
	return io.CopyBuffer(struct{ io.Writer }{c.UnixConn}, struct{ io.Reader }{r}, buf[:])
}

// copyBytes is large enough that the cost of a system call does not count.
const copyBytes = 256 << 10

var buffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

func getBuffer() *[copyBytes]byte  { return buffers.Get().(*[copyBytes]byte) } //nolint:forcetypeassert // New makes no other
func putBuffer(b *[copyBytes]byte) { buffers.Put(b) }
