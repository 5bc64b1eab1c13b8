package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	page = 4096
	// jump is how far the clock of the day has to get ahead of the monotonic one, which stands still while the sandbox is on disk, to tell of a restore.
	jump   = 5 * time.Millisecond
	copies = 20 // of the process, made while memory comes
)

func init() {
	// restored holds so many MiB and waits for a restore, which it sees by the clocks. While its memory is still on its way it works against whoever
	// brings it, from many threads at once, and tells in a file what of its memory was wrong. When a file says so it holds as much anew, and waits
	// again. With "grow" it takes as much again instead.
	works["restored"] = func(args []string) error {
		mib, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for round := 1; ; round++ {
			mem, err := hoard(mib << 20)
			if err != nil {
				return err
			}
			if err := os.WriteFile("/tmp/holds."+strconv.Itoa(round), nil, 0o600); err != nil {
				return err
			}
			awaitRestore()
			if len(args) > 1 && args[1] == "grow" {
				_, err := hoard(mib << 20)
				return err
			}
			if err := os.WriteFile("/tmp/said.new", []byte(mem.attack()+"\n"), 0o600); err != nil {
				return err
			}
			if err := os.Rename("/tmp/said.new", "/tmp/said."+strconv.Itoa(round)); err != nil {
				return err
			}
			for next := "/tmp/next." + strconv.Itoa(round); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(next); err == nil {
					break
				}
			}
			if err := unix.Munmap(mem); err != nil {
				return err
			}
		}
	}
}

// held is memory in which each page has its number at its beginning and its end.
type held []byte

func hoard(bytes int) (held, error) {
	m, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range len(m) / page {
		p := m[i*page : (i+1)*page]
		for j := 8; j < page-8; j += 8 {
			binary.NativeEndian.PutUint64(p[j:], rng.Uint64()) // nothing that an image could leave out
		}
		mark(p, i)
	}
	return m, nil
}

func mark(p []byte, i int) {
	binary.NativeEndian.PutUint64(p, uint64(i)+1)
	binary.NativeEndian.PutUint64(p[page-8:], ^uint64(i))
}

// word reads memory of mmap.
//
//go:nosplit
//go:norace
func word(at uintptr) uint64 { return *(*uint64)(unsafe.Add(nil, at)) }

//go:nosplit
//go:norace
func marked(at uintptr, i int) bool { return word(at) == uint64(i)+1 && word(at+page-8) == ^uint64(i) }

func awaitRestore() {
	ahead := func() time.Duration {
		var day, mono unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &day)
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
		return time.Duration(day.Nano() - mono.Nano())
	}
	for was := ahead(); ; time.Sleep(50 * time.Microsecond) {
		now := ahead()
		if now-was > jump {
			return
		}
		was = now
	}
}

// attack forks, discards, moves and unmaps while pages are on their way. The first half must stay whole through all of it.
func (h held) attack() string {
	pages := len(h) / page
	base := uintptr(unsafe.Pointer(&h[0]))
	eighth := pages / 8 * page
	at := func(n int) uintptr { return base + uintptr(n*eighth) }
	var wg sync.WaitGroup
	var wrong atomic.Int64
	count := func(from uintptr, first, n int) {
		for i := range n {
			if !marked(from+uintptr(i*page), first+i) {
				wrong.Add(1)
			}
		}
	}
	var whole, moved, errs atomic.Int64
	try := func(errno unix.Errno) bool {
		if errno != 0 {
			errs.Add(1)
		}
		return errno == 0
	}
	wg.Go(func() { // copies, each of which reads what its parent has not yet
		for range copies {
			pid, errno := forkAndLook(base, pages/2)
			if !try(errno) {
				return
			}
			var ws unix.WaitStatus
			for {
				if _, err := unix.Wait4(int(pid), &ws, 0, nil); err != unix.EINTR { //nolint:errorlint // an errno as it is
					break
				}
			}
			if ws.Exited() && ws.ExitStatus() == 0 {
				whole.Add(1)
			}
		}
	})
	wg.Go(func() { count(base, 0, pages/2) })
	wg.Go(func() { // discarded while it comes: it may be there or be zeros, and nothing else
		first := pages * 4 / 8
		for i := range pages / 8 {
			p := at(4) + uintptr(i*page)
			_, _, errno := unix.Syscall(unix.SYS_MADVISE, p, page, unix.MADV_DONTNEED)
			if try(errno) && word(p) != 0 && !marked(p, first+i) {
				wrong.Add(1)
			}
		}
	})
	wg.Go(func() { // moved while it comes
		to, _, errno := unix.Syscall6(unix.SYS_MREMAP, at(5), uintptr(eighth), uintptr(eighth), unix.MREMAP_MAYMOVE|unix.MREMAP_DONTUNMAP, 0, 0)
		if !try(errno) {
			return
		}
		for i := range pages / 8 {
			if marked(to+uintptr(i*page), pages*5/8+i) {
				moved.Add(1)
			}
		}
		_, _, errno = unix.Syscall(unix.SYS_MUNMAP, to, uintptr(eighth), 0)
		try(errno)
	})
	wg.Go(func() { // gone, and there again with other content, while it comes
		for i := range pages / 8 {
			p := at(6) + uintptr(i*page)
			_, _, errno := unix.Syscall6(unix.SYS_MMAP, p, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
			if try(errno) && word(p) != 0 {
				wrong.Add(1)
			}
		}
	})
	wg.Go(func() { // closed to everybody, while it comes
		_, _, errno := unix.Syscall(unix.SYS_MPROTECT, at(7), uintptr(eighth), unix.PROT_NONE)
		try(errno)
		_, _, errno = unix.Syscall(unix.SYS_MPROTECT, at(7), uintptr(eighth), unix.PROT_READ|unix.PROT_WRITE)
		try(errno)
		count(at(7), pages*7/8, pages/8)
	})
	fds := userfaultfds()
	wg.Wait()
	return fmt.Sprintf("wrong %d, whole copies %d of %d, moved %d of %d, errors %d, userfaultfds %d", wrong.Load(), whole.Load(), copies, moved.Load(), pages/8, errs.Load(), fds)
}

// forkAndLook makes a copy of this process that looks at its memory and ends: with 0 where all of it is as it was. What is forked has one thread of a Go
// program, on which nothing of Go works.
//
//go:norace
//go:nosplit
func forkAndLook(base uintptr, pages int) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	code := uintptr(0)
	for i := pages - 1; i >= 0; i-- {
		if !marked(base+uintptr(i*page), i) {
			code = 1
		}
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// userfaultfds counts those that are within reach: by this process's descriptors and everybody's, and by the call.
func userfaultfds() (n int) {
	procs, _ := os.ReadDir("/proc")
	for _, p := range procs {
		dir := "/proc/" + p.Name() + "/fd"
		fds, _ := os.ReadDir(dir)
		for _, f := range fds {
			if to, err := os.Readlink(dir + "/" + f.Name()); err == nil && strings.Contains(to, "userfaultfd") {
				n++
			}
		}
	}
	if fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0); errno == 0 {
		_ = unix.Close(int(fd))
		n++
	}
	return n
}
