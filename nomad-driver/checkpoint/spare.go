package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CRIU takes milliseconds to come up, most of them for its libraries: as much as it needs for a small process. So one stands ready for the next
// restore. What belongs to that restore alone it gets then, when it waits to be asked: it is stopped there and made to take the descriptors, and to enter the control group
// namespace, by itself, since nobody else can do that for it (compare restrict.go).

const (
	// spareFiles is how many descriptors one has room for.
	spareFiles = 4
	// spareAfter is how long after a restore has begun the next one is started: it would take a processor from that restore.
	spareAfter = 100 * time.Millisecond
)

// spare is the CRIU that stands ready.
type spare struct {
	mu     sync.Mutex
	ready  *worker     // nil: there is none
	of     []identity  // what it was started from
	next   *time.Timer // for the next one; nil: none is wanted
	making sync.WaitGroup
	over   bool  // none is started any more
	err    error // why none is
}

// identity tells a file from one that has taken its place.
type identity struct {
	dev, ino uint64
	changed  unix.Timespec
}

// identities are those of the files that a program is started from.
func (p program) identities() (out []identity) {
	for _, path := range append([]string{p.path}, p.args...) {
		var st unix.Stat_t
		if filepath.IsAbs(path) && unix.Stat(path, &st) == nil {
			out = append(out, identity{dev: st.Dev, ino: st.Ino, changed: st.Ctim})
		}
	}
	return out
}

// StandBy has a CRIU stand ready for the next restore from now on, and after each restore another one. It is a process of some 3 MiB, which ends with this one.
func (e *Engine) StandBy() {
	s := &e.spare
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil && !s.over {
		s.next = time.AfterFunc(0, e.makeSpare)
	}
}

// standByAgain has the next one come, after a while in which no restore begins.
func (s *spare) standByAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil && !s.over && s.err == nil {
		s.next.Reset(spareAfter)
	}
}

// Spare says why no CRIU stands ready for a restore; nil: one does, or will.
func (e *Engine) Spare() error {
	e.spare.mu.Lock()
	defer e.spare.mu.Unlock()
	return e.spare.err
}

// Close ends the CRIU that stands ready. What has been started goes on.
func (e *Engine) Close() {
	s := &e.spare
	s.mu.Lock()
	s.over = true
	if s.next != nil {
		s.next.Stop()
	}
	w := s.ready
	s.ready = nil
	s.mu.Unlock()
	if w != nil {
		w.end()
	}
	s.making.Wait()
}

// makeSpare starts one, unless there is one.
func (e *Engine) makeSpare() {
	s := &e.spare
	s.mu.Lock()
	if s.over || s.ready != nil {
		s.mu.Unlock()
		return
	}
	s.making.Add(1)
	defer s.making.Done()
	s.mu.Unlock()
	of := e.program.identities()
	w, err := e.startSpare()
	s.mu.Lock()
	switch {
	case errors.Is(err, errKilled):
	case err != nil:
		s.err = errors.Join(s.err, fmt.Errorf("criu cannot stand ready: %w", err))
	case !s.over && s.ready == nil:
		s.ready, s.of, w = w, of, nil
	}
	s.mu.Unlock()
	if w != nil {
		w.end()
	}
}

// errKilled says that a CRIU that was to stand ready has ended meanwhile.
var errKilled = errors.New("it has ended")

// startSpare starts one, and returns when it waits to be asked.
func (e *Engine) startSpare() (_ *worker, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, null.Close()) }()
	w, err := e.start(place{files: slices.Repeat([]*os.File{null}, spareFiles), thread: joinKeyring, follows: true})
	if err != nil {
		return nil, err
	}
	w.slots = spareFiles
	if !up(context.Background(), w.pid(), firstFile+spareFiles) {
		err = errors.New("it cannot be told whether it is up")
	} else {
		err = w.inside(leaveMounts)
	}
	if err != nil {
		if w.hasEnded() { // somebody has killed it: the next restore asks for another one
			err = errKilled
		}
		w.end()
		return nil, err
	}
	return w, nil
}

// systemFolders are those that CRIU may need something from when it has been started: programs, and what all programs need.
var systemFolders = []string{"/bin", "/dev", "/etc", "/gnu", "/lib", "/lib32", "/lib64", "/nix", "/proc", "/sbin", "/sys", "/usr"}

// leaveMounts takes the machine's mounts out of this thread's mount namespace but for the system's: what somebody unmounts would be in use as long as
// one stands ready. Those that are left follow what becomes of them on the machine, where the machine shares its mounts.
func leaveMounts() error {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		m, err := parseMount(line)
		if err != nil {
			return err
		}
		keep := m.point == "/" || m.point == "/tmp" || m.point == kerndatDir ||
			slices.ContainsFunc(systemFolders, func(f string) bool { return m.point == f || strings.HasPrefix(m.point, f+"/") })
		if keep {
			continue
		}
		// It may be gone, with one that it was on, or be covered by another one.
		if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("leave mount %s: %w", m.point, err)
		}
	}
	return nil
}

// takeSpare returns the one that stands ready, with what it is to hand over; nil: there is none. The next one comes.
func (e *Engine) takeSpare(cgroup *os.File, files []*os.File) *worker {
	s := &e.spare
	s.mu.Lock()
	w, of := s.ready, s.of
	s.ready = nil
	s.mu.Unlock()
	if w == nil {
		return nil
	}
	if !slices.Equal(of, e.program.identities()) { // another CRIU writes the images by now
		w.end()
		return nil
	}
	if err := w.give(cgroup, files); err != nil {
		ended := w.hasEnded()
		w.end()
		if !ended {
			s.mu.Lock()
			s.err = fmt.Errorf("criu cannot be given what it is to hand over: %w", err)
			s.mu.Unlock()
		}
		return nil
	}
	return w
}

// give has a worker that waits to be asked take files as its descriptors from firstFile on, and enter a control group namespace. It takes copies from this process.
func (w *worker) give(cgroup *os.File, files []*os.File) error {
	if len(files) > w.slots {
		return fmt.Errorf("%d files, at most %d", len(files), w.slots)
	}
	return w.fromHere(func(c tracee, take func(*os.File) (uint64, error)) error {
		use := func(f *os.File, use func(fd uint64) error) error {
			fd, err := take(f)
			if err != nil {
				return err
			}
			return errors.Join(use(fd), c.call(unix.SYS_CLOSE, fd))
		}
		for i := range w.slots {
			at, err := uint64(firstFile+i), error(nil)
			if i >= len(files) {
				err = c.call(unix.SYS_CLOSE, at)
			} else {
				err = use(files[i], func(fd uint64) error { return c.call(unix.SYS_DUP3, fd, at, 0) })
			}
			if err != nil {
				return fmt.Errorf("descriptor %d: %w", at, err)
			}
		}
		if err := use(cgroup, func(fd uint64) error { return c.call(unix.SYS_SETNS, fd, unix.CLONE_NEWCGROUP) }); err != nil {
			return fmt.Errorf("enter the control group namespace: %w", err)
		}
		return nil
	})
}
