package pager

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// keeper is a process that shares its table of descriptors with this one, and does nothing. Where the last holder of a userfaultfd ends, the kernel takes
// every page that is missing for one of zeros. So whoever kills this process takes nothing away: who waits for a page goes on waiting, and the
// next one finds all userfaultfds with the keeper, also of processes that were forked in the last moment.
type keeper int

// startKeeper forks. What is forked has one thread of a Go program, on which nothing of Go works: it makes one system call for ever.
func startKeeper() (keeper, error) {
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return 0, fmt.Errorf("block signals: %w", err)
	}
	pid, errno := fork()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil && errno == 0 {
		return 0, errors.Join(err, keeper(pid).end())
	}
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	return keeper(pid), nil
}

//go:norace
//go:nosplit
func fork() (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	for {
		_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// end ends the keeper of this process.
func (k keeper) end() error {
	if err := unix.Kill(int(k), unix.SIGKILL); err != nil {
		return fmt.Errorf("end the keeper: %w", err)
	}
	for {
		if _, err := unix.Wait4(int(k), nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
