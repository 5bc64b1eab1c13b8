package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// watch follows PID 1 to its end in a goroutine of its own, which takes a place in the runtime's poller and no thread. It
// ends with PID 1 or with Detach. child tells that PID 1 is a child of this process.
func (s *Sandbox) watch(pidfd *os.File, child bool) {
	s.pidfd = pidfd
	go func() {
		defer close(s.watched)
		if err := awaitEnd(pidfd); err != nil {
			return // detached
		}
		if child {
			var status unix.WaitStatus
			if pid, err := unix.Wait4(s.ref.PID, &status, unix.WNOHANG, nil); err == nil && pid == s.ref.PID {
				s.exit.Waited = true
				s.exit.Code = status.ExitStatus()
				if status.Signaled() {
					s.exit.Signal = int(status.Signal())
					s.exit.Code = 128 + s.exit.Signal
				}
			}
		}
		s.ended()
	}()
}

// ended collects what is left of an ended sandbox and closes done.
func (s *Sandbox) ended() {
	// What cannot be read is as good as not written: PID 1 was killed before it could, or the disk is broken.
	s.exit.Record, _ = readExitRecord(s.at.exit, s.ref)
	if kills, err := s.group.OOMKills(); err == nil {
		s.exit.OOM = kills > 0
	}
	if denied, err := s.group.ForksDenied(); err == nil {
		s.exit.PIDLimit = denied > 0
	}
	if u, err := s.diskCounted(); err == nil && u != nil {
		s.exit.DiskFull = u.Full()
	}
	_ = s.meter.end() // of files that were only read
	close(s.done)
}

// awaitEnd returns when the process of a non-blocking pidfd has ended, or an error when the file is closed or its read
// deadline passes.
func awaitEnd(pidfd *os.File) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n == 1
	})
}

// reap kills a child that has not become a sandbox, and waits for it.
func reap(ctx context.Context, c *child) error {
	err := signalPidfd(c.pidfd, unix.SIGKILL)
	stop := context.AfterFunc(ctx, func() { _ = c.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err == nil {
		err = awaitEnd(c.pidfd)
	}
	if err == nil {
		_, err = unix.Wait4(c.pid, nil, unix.WNOHANG, nil)
	}
	if err == nil {
		c.settled()
	} else {
		err = fmt.Errorf("reap process %d: %w", c.pid, err)
	}
	return errors.Join(err, c.pidfd.Close())
}

// signalPidfd sends a signal. A process that has ended is no error.
func signalPidfd(pidfd *os.File, sig unix.Signal) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("send signal %d: %w", sig, serr)
	}
	return nil
}

// killGrace is how long the death of PID 1, with which the kernel ends all the others, may take before the whole group is
// killed.
const killGrace = 50 * time.Millisecond

// Kill ends every process at once and waits for Done, at most until ctx ends.
func (s *Sandbox) Kill(ctx context.Context) error {
	select {
	case <-s.done:
		return nil
	default:
	}
	// A frozen process does not die on cgroup v1, and its group's kill knows that.
	if !s.frozen.Load() {
		if err := signalPidfd(s.pidfd, unix.SIGKILL); err == nil {
			t := time.NewTimer(killGrace)
			defer t.Stop()
			select {
			case <-s.done:
				return nil
			case <-ctx.Done():
			case <-t.C:
			}
		}
	}
	if err := s.group.Kill(ctx); err != nil {
		return fmt.Errorf("kill sandbox %s: %w", s.ref.ID, err)
	}
	select {
	case <-s.done:
		return nil
	case <-s.watched:
		select {
		case <-s.done:
			return nil
		default:
		}
		return fmt.Errorf("kill sandbox %s: it was detached", s.ref.ID)
	case <-ctx.Done():
		return fmt.Errorf("kill sandbox %s: %w", s.ref.ID, ctx.Err())
	}
}

// Release kills what still runs and removes the group and the directories. It may be repeated until it returns nil, and
// after that.
func (s *Sandbox) Release(ctx context.Context) error {
	s.releasing.Lock()
	defer s.releasing.Unlock()
	if s.released {
		return nil
	}
	if err := s.Kill(ctx); err != nil {
		return err
	}
	if err := s.Detach(); err != nil {
		return err
	}
	if err := scrub(ctx, s.at, s.group, unbind(s.disk)); err != nil {
		return fmt.Errorf("release sandbox %s: %w", s.ref.ID, err)
	}
	s.released = true
	return nil
}

// Detach lets go of the sandbox without touching it: it goes on, Done will not be closed any more by its end, and it can
// be opened again by its Ref. A daemon calls it when it stops.
func (s *Sandbox) Detach() error {
	err := errors.Join(s.oom.stop(), s.meter.end())
	if s.pidfd == nil {
		return err
	}
	err = errors.Join(err, closeQuietly(s.pidfd))
	<-s.watched
	return err
}

// unbind returns what ends the bound of a writable layer; nil where there is none.
func unbind(l disk.Limiter) func(dir string) error {
	if l == nil {
		return nil
	}
	return l.Release
}

// scrub removes everything of a sandbox that has no PID 1 any more. Empty paths, a nil group and a nil unbind are left out.
func scrub(ctx context.Context, at layout, group *cgroup.Group, unbind func(dir string) error) error {
	var errs []error
	if group != nil {
		errs = append(errs, group.Kill(ctx), group.Remove(ctx))
	}
	if at.run != "" {
		// Only a kernel that needs rootfs.Overlay.Attach, and a crash at that moment, leave a mount there.
		err := unix.Unmount(at.run, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", at.run, err))
		}
		errs = append(errs, removeTree(at.run))
	}
	if at.state != "" {
		// First the bound: where it is a file system of its own, unmounting it is quicker than removing what is in it.
		if unbind != nil {
			errs = append(errs, unbind(at.state))
		}
		errs = append(errs, removeTree(at.state))
	}
	return errors.Join(errs...)
}

// maxExitRecord bounds what is read of an exit file, which PID 1 wrote.
const maxExitRecord = 4096

func readExitRecord(path string, ref Ref) (*guest.ExitRecord, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open exit record %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	b, err := io.ReadAll(io.LimitReader(f, maxExitRecord+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read exit record %s: %w", path, err)
	}
	return parseExitRecord(b, ref)
}

// parseExitRecord takes the first line of an exit file. It comes from inside: nothing in it is believed beyond its bounds.
func parseExitRecord(b []byte, ref Ref) (*guest.ExitRecord, error) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if !whole {
		return nil, errors.New("exit record is empty or cut off")
	}
	var r guest.ExitRecord
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	switch {
	case r.Version < 1:
		return nil, fmt.Errorf("exit record: version %d", r.Version)
	case r.SandboxID != string(ref.ID):
		return nil, fmt.Errorf("exit record: it is of sandbox %.40q", r.SandboxID)
	case r.Reason != guest.ReasonMainExited && r.Reason != guest.ReasonShutdown:
		return nil, fmt.Errorf("exit record: unknown reason %.40q", r.Reason)
	case r.Code < 0 || r.Code > 255 || r.Signal < 0 || r.Signal > 64:
		return nil, fmt.Errorf("exit record: code %d, signal %d", r.Code, r.Signal)
	}
	if _, err := time.Parse(time.RFC3339Nano, r.EndedAt); err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	return &r, nil
}
