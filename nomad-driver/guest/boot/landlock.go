package boot

import (
	"errors"
	"fmt"
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

// newStarter makes the thread. It works only after begin.
func newStarter() *starter {
	s := &starter{restrict: make(chan bool, 1), ready: make(chan error, 1), jobs: make(chan func())}
	go func() {
		runtime.LockOSThread() // for good: what the runtime starts on other threads is not restricted
		if !<-s.restrict {
			return
		}
		s.ready <- errors.Join(restrictFiles(), ordinaryTurns())
		for f := range s.jobs {
			f()
		}
	}()
	return s
}

// ordinaryTurns takes back, for the calling thread and what it starts, the short turns of the processor that PID 1 has from the node: they
// are for those who answer, not for those who compute.
func ordinaryTurns() error {
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("get own place with the scheduler: %w", err)
	}
	if attr.Policy != unix.SCHED_NORMAL {
		return nil
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Flags: attr.Flags, Nice: attr.Nice}, 0); err != nil {
		return fmt.Errorf("set own place with the scheduler: %w", err)
	}
	return nil
}

// begin restricts the thread. It must still have CAP_SYS_ADMIN.
func (s *starter) begin() error {
	s.restrict <- true
	return <-s.ready
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

// restrictFiles puts the calling thread, and what it starts, into a Landlock domain: no mount is made, moved, changed or
// removed any more, whatever capability somebody may come by; device nodes are made nowhere; devices outside /dev take no
// ioctl; no signal reaches a process outside the domain, PID 1 included. A kernel without Landlock is left as it is: this is the wall behind the others.
//
// What is mounted read-only or masked cannot be said in its terms, in which a right over / is one over all below it.
func restrictFiles() error {
	abi, err := LandlockVersion()
	if err != nil || abi < LandlockABI {
		return err
	}
	handled := uint64(unix.LANDLOCK_ACCESS_FS_REFER | unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK)
	device := uint64(0)
	if abi >= LandlockIoctlABI {
		device = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	attr := unix.LandlockRulesetAttr{Access_fs: handled | device} // a field that a version does not know must be 0
	if abi >= LandlockScopesABI {
		// Abstract sockets are those of the own network namespace already; and a checkpoint must reach the processes through one.
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
	}
	set, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return fmt.Errorf("make landlock rules: %w", errno)
	}
	err = allow(int(set), "/", unix.LANDLOCK_ACCESS_FS_REFER)
	if err == nil && device != 0 {
		err = allow(int(set), "/dev", device)
	}
	if err == nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); errno != 0 {
			err = fmt.Errorf("restrict by landlock rules: %w", errno)
		}
	}
	return errors.Join(err, unix.Close(int(set)))
}

func allow(set int, path string, rights uint64) error {
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(dir)}
	_, _, errno := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	err = unix.Close(dir)
	if errno != 0 {
		err = errors.Join(fmt.Errorf("allow %#x on %s: %w", rights, path, errno), err)
	}
	return err
}

// restrict begins the starter's work, where the node wants Landlock.
func (w *World) restrict(s *starter) error {
	if !w.Boot.Landlock {
		s.restrict <- false
		return nil
	}
	w.Start = s.Do
	return s.begin()
}

// Starter is how World starts processes: see starter.
type Starter = func(func() (int, error)) (int, error)
