package pid1

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// workers run work on threads of their own whose file system identity is a user's, so that the kernel checks every path as
// it does for that user's processes. The threads are made at the start and kept: a sandbox at its limit of processes
// can still be looked into, and the runtime need not make a thread, which it cannot survive failing to.
type workers struct {
	jobs chan job
}

type job struct {
	user guest.UserInfo
	work func() error
	done chan<- error
}

// workerCount is how many file operations run at the same time.
const workerCount = 3

func newWorkers() *workers {
	w := &workers{jobs: make(chan job)}
	for range workerCount {
		go w.run()
	}
	return w
}

// as runs f as u and returns its error.
func (w *workers) as(u guest.UserInfo, f func() error) error {
	done := make(chan error, 1)
	w.jobs <- job{user: u, work: f, done: done}
	return <-done
}

// run is one worker's life, which is PID 1's.
func (w *workers) run() {
	runtime.LockOSThread()
	for j := range w.jobs {
		err := become(j.user.UID, j.user.GID, j.user.Groups)
		if err == nil {
			err = j.work()
		} else {
			err = fmt.Errorf("act as user %d:%d: %w", j.user.UID, j.user.GID, err)
		}
		j.done <- err
		if err := become(0, 0, nil); err != nil {
			// This thread cannot be trusted with another user's work. It ends with its goroutine.
			go w.run()
			return
		}
	}
}

// become changes the calling thread's file system identity. The system calls are made directly, because the wrappers of
// the runtime change all threads. With a file system uid that is not 0 the thread has none of the capabilities over files;
// it gets them back with 0.
func become(uid, gid uint32, groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	if err := setFS(unix.SYS_SETFSGID, gid); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if err := setFS(unix.SYS_SETFSUID, uid); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	return nil
}

// setFS calls setfsuid or setfsgid, which report no failure: what counts is what a second call sees.
func setFS(call uintptr, id uint32) error {
	unix.RawSyscall(call, uintptr(id), 0, 0)
	if now, _, _ := unix.RawSyscall(call, uintptr(^uint32(0)), 0, 0); uint32(now) != id {
		return unix.EPERM
	}
	return nil
}
