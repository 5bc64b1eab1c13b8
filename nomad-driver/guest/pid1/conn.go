package pid1

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// conn is one connection of the guest socket: a file in the runtime's poller. The net package would bring more with it than
// PID 1 needs.
type conn struct {
	f  *os.File
	rc syscall.RawConn
	// parked tells that the conversation was ended for a checkpoint, not by a client that left.
	parked atomic.Bool

	mu    sync.Mutex
	until time.Time // the read deadline that holds between calls of during
}

func newConn(fd int) (*conn, error) {
	f := pollable(fd, "connection")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &conn{f: f, rc: rc}, nil
}

// readUntil sets the read deadline.
func (c *conn) readUntil(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = t
	c.f.SetReadDeadline(t)
}

// closeWrite tells the client that nothing more comes.
func (c *conn) closeWrite() {
	_ = c.rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// during does work and returns when it is done. Where the client leaves meanwhile it calls hangup, which must make work
// return, and returns false. Nothing is read from the client.
func (c *conn) during(work, hangup func()) bool {
	done := make(chan struct{})
	go func() {
		work()
		close(done)
		c.f.SetReadDeadline(time.Unix(1, 0))
	}()
	hung := false
	err := c.rc.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		hung = err == nil && n > 0
		return hung
	})
	if hung || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		hangup()
		<-done
		return false
	}
	<-done
	c.mu.Lock()
	defer c.mu.Unlock()
	c.f.SetReadDeadline(c.until)
	return true
}

// sendFD writes one Response frame with a descriptor beside its first byte.
func (c *conn) sendFD(msg []byte, fd int) error {
	rights := unix.UnixRights(fd)
	var n int
	var serr error
	err := c.rc.Write(func(s uintptr) bool {
		n, serr = unix.SendmsgN(int(s), msg, rights, nil, unix.MSG_NOSIGNAL)
		return serr != unix.EAGAIN
	})
	if err == nil {
		err = serr
	}
	if err == nil && n < len(msg) {
		_, err = c.f.Write(msg[n:])
	}
	return err
}

// fail sends an error, which ends the conversation.
func (c *conn) fail(e *frame.ErrorBody) { _ = frame.WriteJSON(c.f, frame.Error, e) }
