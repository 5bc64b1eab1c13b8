package boot

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// starter is the one thread that starts processes. Landlock is per thread, and each restriction makes a domain of its own,
// even of the same rules: processes that were started by two restricted threads could not look at each other's /proc
// entries. So only one is restricted, and it is the parent of all.
type starter struct {
	restrict chan bool // once the world is as it will stay: whether to; false ends the thread
	ready    chan error
	jobs     chan func()
}

// newStarter makes the thread. It works only after beginRestrict.
func newStarter() *starter {
	s := &starter{restrict: make(chan bool, 1), ready: make(chan error, 1), jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // for good: what the runtime starts on other threads is not restricted
		if !<-s.restrict {
			return
		}
		s.ready <- errors.Join(restrictSelf(), ordinaryTurns())
		for f := range s.jobs {
			f()
		}
	}()
	return s
}

// ordinaryTurns has what the calling thread starts get ordinary turns of the processor. The short ones, which PID 1 has from the node, are for those who answer: this
// thread, too, keeps them.
func ordinaryTurns() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("get own place with the scheduler: %w", err)
	}
	if attr.Policy != unix.SCHED_NORMAL {
		return nil
	}
	own := &unix.SchedAttr{Flags: attr.Flags | unix.SCHED_FLAG_RESET_ON_FORK, Nice: attr.Nice, Runtime: attr.Runtime}
	if err := unix.SchedSetAttr(0, own, 0); err != nil {
		return fmt.Errorf("set own place with the scheduler: %w", err)
	}
	return nil
}

// Do runs f on the thread and returns what it returns.
func (s *starter) Do(f func() (int, error)) (n int, err error) {
	done := make(chan struct{})
	s.jobs <- func() {
		defer close(done)
		n, err = f()
	}
	<-done
	return n, err
}

// Versions of Landlock from which on a sandbox has parts of it. With the first one, files cannot be moved between directories at all.
const (
	LandlockABI       = 2 // mounts and device nodes
	LandlockIoctlABI  = 5 // ioctls of devices
	LandlockScopesABI = 6 // signals
)

// LandlockVersion returns the version of the kernel's Landlock; 0 where it has none.
func LandlockVersion() (int, error) {
	abi, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		return int(abi), nil
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return 0, nil
	}
	return 0, fmt.Errorf("landlock version: %w", errno)
}

// LandlockRules are the rules of a sandbox's Landlock domain: no mount is made, moved, changed or removed any more, whatever capability
// somebody may come by; device nodes are made nowhere; devices outside /dev take no ioctl; no signal reaches a process outside the domain.
//
// What is mounted read-only or masked cannot be said in its terms, in which a right over / is one over all below it.
type LandlockRules struct {
	*os.File
	device uint64 // the right to ioctls of devices, where the kernel knows it
}

// NewLandlockRules makes rules that allow nothing yet; nil where the kernel has no Landlock that a sandbox can use.
func NewLandlockRules() (*LandlockRules, error) {
	abi, err := LandlockVersion()
	if err != nil || abi < LandlockABI {
		return nil, err
	}
	handled := uint64(unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK)
	r := &LandlockRules{}
	if abi >= LandlockIoctlABI {
		r.device = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	attr := unix.LandlockRulesetAttr{Access_fs: handled | r.device} // a field that a version does not know must be 0
	if abi >= LandlockScopesABI {
		// Abstract sockets are those of the own network namespace already; and a checkpoint must reach the processes through one.
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return nil, fmt.Errorf("make landlock rules: %w", errno)
	}
	r.File = os.NewFile(fd, "landlock rules")
	return r, nil
}

// Allow allows what a sandbox needs, with descriptors of its directories / and /dev.
func (r *LandlockRules) Allow(root, dev int) error {
	if err := r.allow(root, unix.LANDLOCK_ACCESS_FS_REFER); err != nil {
		return fmt.Errorf("allow moves below /: %w", err)
	}
	if r.device == 0 {
		return nil
	}
	if err := r.allow(dev, r.device); err != nil {
		return fmt.Errorf("allow ioctls below /dev: %w", err)
	}
	return nil
}

func (r *LandlockRules) allow(dir int, rights uint64) error {
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(dir)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, r.Fd(), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("add landlock rule: %w", errno)
	}
	return nil
}

// restrictSelf puts the calling thread, and what it starts, into a domain of LandlockRules. A kernel without Landlock is left as it is: this is
// the wall behind the others.
func restrictSelf() (err error) {
	r, err := NewLandlockRules()
	if r == nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var dirs [2]int
	for i, path := range []string{"/", "/dev"} {
		if dirs[i], err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		defer unix.Close(dirs[i])
	}
	if err := r.Allow(dirs[0], dirs[1]); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, r.Fd(), 0, 0); errno != 0 {
		return fmt.Errorf("restrict by landlock rules: %w", errno)
	}
	return nil
}

// beginRestrict lets the starter begin its work, where the node wants Landlock. / and /dev must be what they will be. It goes on beside
// what else PID 1 has to set up.
func (w *World) beginRestrict(s *starter) { s.restrict <- w.Boot.Landlock }

// awaitRestrict waits until the starter is restricted, for which it needs CAP_SYS_ADMIN.
func (w *World) awaitRestrict(s *starter) error {
	if !w.Boot.Landlock {
		return nil
	}
	w.Start = s.Do
	return <-s.ready
}

// Starter is how World starts processes: see starter.
type Starter = func(func() (int, error)) (int, error)
