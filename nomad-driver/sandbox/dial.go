package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrPortClosed is in the chain of Dial's error where nobody listens on the port, neither on 127.0.0.1 nor on ::1.
var ErrPortClosed = errors.New("nobody listens on the port")

// hostNet is the network namespace that this process runs in. The main thread, which /proc/self is about, may have gone elsewhere.
var hostNet = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })

// Dial connects to a TCP port on the sandbox's own loopback, as a process inside would. The socket is made inside its network
// namespace, which a socket keeps for its life, so no address of the host is involved. It ends with ctx.
func (s *Sandbox) Dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dial sandbox %s: port %d is not between 1 and 65535", s.ref.ID, port)
	}
	loopback6 := &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}
	conn, err := s.dial(ctx, unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if errors.Is(err, unix.ECONNREFUSED) {
		var err6 error
		if conn, err6 = s.dial(ctx, unix.AF_INET6, loopback6); err6 == nil {
			err = nil
		}
	}
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, unix.ECONNREFUSED):
		err = ErrPortClosed
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.ref.ID, err)
}

// DialPacket connects to a UDP port on the sandbox's own loopback, of IPv4. Nothing is sent: that nobody listens is told by the first read
// after a write.
func (s *Sandbox) DialPacket(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("dial sandbox %s: port %d is not between 1 and 65535", s.ref.ID, port)
	}
	fd, err := socketIn(s.pidfd, unix.AF_INET, unix.SOCK_DGRAM)
	if err != nil {
		return nil, fmt.Errorf("dial UDP port %d of sandbox %s: %w", port, s.ref.ID, errors.Join(err, ctx.Err()))
	}
	f := os.NewFile(uintptr(fd), "sandbox port")
	defer f.Close() // net.FileConn has its own copy
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, fmt.Errorf("dial UDP port %d of sandbox %s: %w", port, s.ref.ID, os.NewSyscallError("connect", err))
	}
	return net.FileConn(f)
}

func (s *Sandbox) dial(ctx context.Context, family int, to unix.Sockaddr) (net.Conn, error) {
	fd, err := socketIn(s.pidfd, family, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sandbox port")
	defer f.Close() // net.FileConn has its own copy
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })()
	var cerr error
	// The second call, once the socket is writable, tells how the first one went.
	err = rc.Write(func(fd uintptr) bool {
		cerr = unix.Connect(int(fd), to)
		return cerr != unix.EINPROGRESS && cerr != unix.EALREADY && cerr != unix.EINTR
	})
	if err != nil {
		return nil, err
	}
	if cerr != nil && cerr != unix.EISCONN {
		return nil, os.NewSyscallError("connect", cerr)
	}
	return net.FileConn(f)
}

// socketIn makes a socket in a process's network namespace. A thread that cannot come back from there is not used again.
func socketIn(process *os.File, family, kind int) (fd int, err error) {
	home, err := hostNet()
	if err != nil {
		return -1, err
	}
	pidfd, err := process.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		cerr := pidfd.Control(func(p uintptr) { err = unix.Setns(int(p), unix.CLONE_NEWNET) })
		if err = errors.Join(cerr, err); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		done <- os.NewSyscallError("socket", err)
	}()
	err = <-done
	return fd, err
}
