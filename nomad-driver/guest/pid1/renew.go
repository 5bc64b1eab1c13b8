package pid1

import (
	"encoding/json"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// parkWait bounds how long conversations may take to end for a checkpoint.
const parkWait = 2 * time.Second

// park ends every conversation but c's and returns when they have ended: none of their descriptors is left, which no checkpoint could
// hold, since the other ends are the node's.
func (s *server) park(c *conn) error {
	s.mu.Lock()
	for other := range s.open {
		if other == c {
			continue
		}
		other.parked.Store(true)
		_ = other.rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	}
	s.mu.Unlock()
	deadline := time.Now().Add(parkWait)
	t := time.AfterFunc(parkWait, func() {
		s.mu.Lock()
		s.left.Broadcast()
		s.mu.Unlock()
	})
	defer t.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.conns > 1 && time.Now().Before(deadline) {
		s.left.Wait()
	}
	if s.conns == 1 {
		// CRIU looks at the namespaces of PID 1 from inside. The memory of a restored PID 1 belongs, to the kernel, to the host's user
		// namespace, so that nobody inside may look while it is not dumpable.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return fail(guest.CodeInternal, "make init dumpable: %v", err)
		}
		s.bare = true
	} else {
		return fail(guest.CodeLimit, "%d conversations did not end within %s", s.conns-1, parkWait)
	}
	return nil
}

// cover ends what park has left: the sandbox runs again, whether it was restored or only thawed. s.mu is held.
func (s *server) cover() {
	if s.bare && unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) == nil {
		s.bare = false
	}
}

// renew takes a new identity, and exchanges the listening socket for one of the own network namespace.
func (s *server) renew(c *conn, r *guest.Renew) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		c.fail(fail(guest.CodeInternal, "make socket: %v", err))
		return
	}
	body, err := json.Marshal(guest.Response{Version: guest.ProtocolVersion})
	var msg frameBytes
	if err == nil {
		err = frame.Write(&msg, frame.Response, body)
	}
	if err == nil {
		err = c.sendFD(msg, fd)
	}
	// The node binds it, where nothing inside can see it, and lets it listen.
	if err == nil {
		c.f.SetDeadline(time.Now().Add(requestWait))
		var req guest.Request
		err = frame.NewReader(c.f).ReadJSON(frame.Request, &req)
	}
	if err != nil {
		// The node may have given it the name by which this one is found, and gone then, or not yet: so both are served, until one does it to the end.
		if on, lerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); lerr == nil && on == 1 {
			go s.serve(pollable(fd, "guest socket"))
			return
		}
		unix.Close(fd)
		return
	}
	s.b.renew(r)
	s.mu.Lock()
	old := s.lis
	s.lis = nil
	s.mu.Unlock()
	f := pollable(fd, "guest socket")
	s.listens(f)
	go s.accept(f)
	for _, o := range old {
		o.Close()
	}
	answer(c, guest.Response{}, nil)
}

func (s *supervisor) renew(r *guest.Renew) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Others may be reading the old ones: they are replaced, never changed.
	b := *s.boot
	b.SandboxID = r.SandboxID
	s.boot = &b
	s.env = append(slices.Clip(s.env), r.Env...)
}

func (s *supervisor) setEnv(env []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env = append(slices.Clip(s.env), env...) // replaced, as in renew
}

func (s *supervisor) sandboxID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot.SandboxID
}

func (s *supervisor) defaultEnv() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env
}
