package boot

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// limit sets resource limits. A hard limit above what PID 1 has already is lowered to that: it cannot be raised here.
// It goes through package syscall, which otherwise would give children the limit on open files from before.
func limit(rlimits []guest.Rlimit) error {
	for _, l := range rlimits {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.Resource, &now); err != nil {
			return fmt.Errorf("get resource limit %d: %w", l.Resource, err)
		}
		hard := min(l.Hard, now.Max)
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: min(l.Soft, hard), Max: hard}); err != nil {
			return fmt.Errorf("set resource limit %d to %d: %w", l.Resource, hard, err)
		}
	}
	return nil
}

// lockDown installs the seccomp filter and gives up capabilities, for every thread. The filter comes first: in the default
// profile, which must leave no_new_privs alone, only CAP_SYS_ADMIN allows it. The bounding set was dropped before the exec.
func lockDown(b *guest.Boot) error {
	for c := range uintptr(64) {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return fmt.Errorf("read bounding set: %w", err)
		}
		if has == 1 && b.Capabilities&(1<<c) == 0 {
			return fmt.Errorf("capability %d is still in the bounding set", c)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make init not dumpable: %w", err)
	}
	if b.Profile == ProfileStrict {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if err := installFilter(b.Seccomp); err != nil {
		return err
	}
	return setCapabilities(b.Capabilities)
}

// installFilter installs the program on all threads; no_new_privs goes with it.
func installFilter(program []byte) error {
	filter := make([]unix.SockFilter, len(program)/8)
	for i := range filter {
		p := program[i*8:]
		filter[i] = unix.SockFilter{Code: nativeEndian.Uint16(p), Jt: p[2], Jf: p[3], K: nativeEndian.Uint32(p[4:])}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("install seccomp filter: thread %d has another one", tid)
	}
	return nil
}

// setCapabilities makes mask the permitted and effective set of every thread and empties the inheritable one. The ambient
// set of a new user namespace is empty.
func setCapabilities(mask uint64) error {
	hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{
		{Effective: uint32(mask), Permitted: uint32(mask)},
		{Effective: uint32(mask >> 32), Permitted: uint32(mask >> 32)},
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(hdr)), uintptr(unsafe.Pointer(data)), 0)
	runtime.KeepAlive(hdr)
	runtime.KeepAlive(data)
	if errno != 0 {
		return fmt.Errorf("set capabilities %#x: %w", mask, errno)
	}
	return nil
}
