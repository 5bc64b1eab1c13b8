// Package pager gives processes their memory while they run, which were restored without it.
//
// It owns the program that does so (Run, started as "soulbox-init pages"), what that program keeps for one that comes after it, and the calls of
// userfaultfd(2). It never decides what is served later: package checkpoint does, and opens the userfaultfds. It is the standard library and x/sys
// alone, since the binary is the one that sandboxes run from.
package pager

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls of userfaultfd(2), on amd64 and arm64: linux/userfaultfd.h.
const (
	// IoctlNew is the call of Device that makes a userfaultfd for the memory of whoever calls.
	IoctlNew = 0xaa00

	ioctlAPI      = 0xc018aa3f
	ioctlRegister = 0xc020aa00
	ioctlWake     = 0x8010aa02
	ioctlCopy     = 0xc028aa03
	ioctlZero     = 0xc020aa04

	apiVersion = 0xaa
	// features are what a program is told of that changes its memory, which is none of ours.
	features = 1<<1 | 1<<2 | 1<<3 | 1<<6 // fork, remap, remove, unmap

	modeMissing = 1
)

// Device makes userfaultfds for whoever may open it.
const Device = "/dev/userfaultfd"

const pageSize = 4096

// OpenDevice opens Device.
func OpenDevice() (int, error) {
	fd, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s (Linux 6.1, CONFIG_USERFAULTFD): %w", Device, err)
	}
	return fd, nil
}

// Probe says why this machine cannot give a process its memory later; nil: it can.
func Probe() error {
	dev, err := OpenDevice()
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	fd, err := unix.IoctlRetInt(dev, IoctlNew)
	if err != nil {
		return fmt.Errorf("make a userfaultfd: %w", err)
	}
	defer unix.Close(fd)
	return Begin(fd)
}

// Begin asks a new userfaultfd for the events that this package needs. The kernel allows that to CAP_SYS_PTRACE of the host alone.
func Begin(fd int) error {
	api := struct{ api, features, ioctls uint64 }{api: apiVersion, features: features}
	if err := ioctl(fd, ioctlAPI, unsafe.Pointer(&api)); err != nil {
		return fmt.Errorf("userfaultfd with events: %w", err)
	}
	return nil
}

// Register has the kernel ask fd for pages of this memory that are not there. It may be called in any process that has fd.
func Register(fd int, at, size uint64) error {
	r := struct{ start, len, mode, ioctls uint64 }{start: at, len: size, mode: modeMissing}
	if err := ioctl(fd, ioctlRegister, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("register %#x, %d bytes: %w", at, size, err)
	}
	return nil
}

// put copies whole pages to where they are missing, and returns how many bytes it has copied before an error.
func put(fd int, at uint64, b []byte) (uint64, error) {
	c := struct {
		dst, src, len, mode uint64
		copied              int64
	}{dst: at, src: uint64(uintptr(unsafe.Pointer(&b[0]))), len: uint64(len(b))}
	err := ioctl(fd, ioctlCopy, unsafe.Pointer(&c))
	if err == nil {
		return uint64(len(b)), nil
	}
	return uint64(max(c.copied, 0)), err
}

// zero puts a page of zeros where it is missing.
func zero(fd int, at uint64) error {
	z := struct {
		start, len, mode uint64
		zeroed           int64
	}{start: at, len: pageSize}
	return ioctl(fd, ioctlZero, unsafe.Pointer(&z))
}

// wake lets those go on that wait for these pages.
func wake(fd int, at, size uint64) error {
	r := struct{ start, len uint64 }{at, size}
	return ioctl(fd, ioctlWake, unsafe.Pointer(&r))
}

func ioctl(fd int, call uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), call, uintptr(arg))
		if errno == 0 {
			return nil
		}
		if !errors.Is(errno, unix.EINTR) {
			return errno
		}
	}
}
