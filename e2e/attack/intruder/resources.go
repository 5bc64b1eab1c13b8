package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	works["fill"] = func(dirs []string) error {
		for _, dir := range dirs {
			for _, w := range []struct {
				name string
				do   func(path string) error
			}{
				{"fallocate 10 TiB", func(path string) error { return allocate(path, 10<<40) }},
				{"write 1 GiB", func(path string) error { return writeMuch(path, 1<<30) }},
				{"truncate to 10 TiB, write its end and 1 GiB", func(path string) error {
					if err := os.WriteFile(path, nil, 0o600); err != nil {
						return err
					}
					if err := unix.Truncate(path, 10<<40); err != nil {
						return err
					}
					return writeMuch(path, 1<<30)
				}},
			} {
				path := filepath.Join(dir, "filled")
				fmt.Printf("%s in %s\t%s\n", w.name, dir, answer(w.do(path)))
				_ = os.Remove(path)
			}
		}
		return nil
	}
	// inodes makes empty files until it cannot, at most so many.
	works["inodes"] = func(args []string) error {
		most, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		dir, err := unix.Open(args[0], unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		made := 0
		for err == nil && made < most {
			var fd int
			if fd, err = unix.Openat(dir, strconv.Itoa(made), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o600); err == nil {
				_ = unix.Close(fd)
				made++
			}
		}
		fmt.Printf("%d files, then %s\n", made, answer(err))
		return nil
	}
	// forks starts processes until it cannot, and waits with them.
	works["forks"] = func([]string) error {
		var err error
		n := 0
		for err == nil && n < 100_000 {
			var pid uintptr
			var errno syscall.Errno
			if pid, _, errno = unix.RawSyscall(unix.SYS_FORK, 0, 0, 0); errno != 0 {
				err = errno
			} else if pid == 0 {
				for {
					unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
				}
			} else {
				n++
			}
		}
		fmt.Printf("%d processes, then %s\n", n, answer(err))
		return forever()
	}
	// memory takes memory of one kind until it is stopped.
	works["memory"] = func(args []string) error { return eat(args[0]) }
	works["spin"] = func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for range n {
			go func() {
				runtime.LockOSThread()
				_ = spin()
			}()
		}
		return forever()
	}
	works["flood"] = func(args []string) error {
		n, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 'x'
		}
		for ; n > 0; n -= int64(len(block)) {
			if _, err := os.Stdout.Write(block); err != nil {
				return err
			}
		}
		return nil
	}
	// take takes all of one thing, says how many there were, and keeps them.
	works["take"] = func(args []string) error {
		open := map[string]func() (int, error){
			"descriptors": func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY, 0) },
			"inotify":     func() (int, error) { return unix.InotifyInit1(0) },
			"terminals":   func() (int, error) { return unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0) },
			"locked": func() (int, error) {
				b, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
				if err == nil {
					err = unix.Mlock(b)
				}
				return 0, err
			},
			"signals": func() (int, error) {
				// A blocked real-time signal, sent to a thread of its own that never takes it: each stays in the kernel.
				if blocked == 0 {
					blocked = blockedThread()
				}
				info := [16]uint64{60, 0xffffffff} // si_signo, si_code SI_QUEUE
				_, _, errno := unix.Syscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(unix.Getpid()), uintptr(blocked), 60, uintptr(unsafe.Pointer(&info)), 0, 0)
				if errno != 0 {
					return 0, errno
				}
				return 0, nil
			},
			"queues": func() (int, error) {
				queues++
				attr := [8]int64{0, 10, 8192}
				name := text(fmt.Sprintf("q%d", queues))
				fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, name, unix.O_CREAT|unix.O_RDWR, 0o600, pointer(&attr), 0, 0)
				if errno != 0 {
					return 0, errno
				}
				return int(fd), nil
			},
			"timers": func() (int, error) { return unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0) },
			"pipes": func() (int, error) {
				var p [2]int
				err := unix.Pipe(p[:])
				return p[0], err
			},
		}[args[0]]
		if open == nil {
			return fmt.Errorf("cannot take %s", args[0])
		}
		n := 0
		var err error
		for n < 1<<20 {
			if _, err = open(); err != nil {
				break
			}
			n++
		}
		fmt.Printf("%d %s, then %s\n", n, args[0], answer(err))
		return forever()
	}
	// deaf ignores every signal, as do its children, and all are busy.
	works["deaf"] = func(args []string) error {
		signal.Ignore()
		for s := range 65 {
			signal.Ignore(syscall.Signal(s))
		}
		if len(args) > 0 {
			for range 8 {
				if err := exec.Command("/proc/self/exe", "deaf").Start(); err != nil {
					return err
				}
			}
			fmt.Println("deaf")
		}
		return spin()
	}
	// stuck waits in the kernel where only SIGKILL reaches: the parent of a vfork, whose child sleeps and has stopped itself.
	works["stuck"] = func([]string) error {
		cmd := exec.Command("/bin/bash", "-c", `kill -STOP $$`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println("stuck")
		return cmd.Wait()
	}
	works["orphans"] = func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for range n {
			// Each leaves a child behind that ends at once and is PID 1's to reap.
			if err := exec.Command("/bin/sh", "-c", "(exit 0) &").Run(); err != nil {
				return err
			}
		}
		fmt.Println("done")
		return nil
	}
	works["crash"] = func([]string) error {
		signal.Reset()
		return unix.Kill(unix.Getpid(), unix.SIGSEGV)
	}
}

var (
	blocked int // a thread that blocks every signal
	queues  int
)

// blockedThread starts a thread that takes no signal.
func blockedThread() int {
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		set := unix.Sigset_t{}
		for i := range set.Val {
			set.Val[i] = ^uint64(0)
		}
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			panic(err)
		}
		tid <- unix.Gettid()
		select {}
	}()
	return <-tid
}

// forever keeps what was taken: it ends with the sandbox.
func forever() error {
	for {
		time.Sleep(time.Hour)
	}
}

func allocate(path string, n int64) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(fd, 0, 0, n), unix.Close(fd))
}

func writeMuch(path string, n int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for ; n > 0; n -= len(block) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return nil
}

// eat takes memory of a kind until it is refused or the process is killed.
func eat(kind string) error {
	const piece = 4 << 20
	var keep [][]byte
	var err error
	n := 0
	for err == nil && n < 4096 {
		switch kind {
		case "heap":
			b := make([]byte, piece)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		case "mapped":
			var b []byte
			if b, err = unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE); err == nil {
				keep = append(keep, b)
			}
		case "locked":
			var b []byte
			if b, err = unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err == nil {
				err = unix.Mlock(b)
			}
		case "shm":
			id, _, errno := unix.Syscall(unix.SYS_SHMGET, 0, piece, 0o1600)
			if errno != 0 {
				err = errno
				break
			}
			addr, _, errno := unix.Syscall(unix.SYS_SHMAT, id, 0, 0)
			if errno != 0 {
				err = errno
				break
			}
			err = unix.Madvise(unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), piece), 23) // MADV_POPULATE_WRITE
		case "memfd":
			var fd int
			if fd, err = unix.MemfdCreate("x", 0); err == nil {
				err = unix.Fallocate(fd, 0, 0, piece)
			}
		case "pipes":
			var p [2]int
			if err = unix.Pipe2(p[:], unix.O_NONBLOCK); err == nil {
				_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, 1<<20)
				for {
					if _, err := unix.Write(p[1], make([]byte, 64<<10)); err != nil {
						break
					}
				}
			}
		case "sockets":
			var s [2]int
			if s, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0); err == nil {
				for {
					if _, err := unix.Write(s[0], make([]byte, 32<<10)); err != nil {
						break
					}
				}
			}
		case "messages":
			id, _, errno := unix.Syscall(unix.SYS_MSGGET, 0, 0o1600, 0)
			if errno != 0 {
				err = errno
				break
			}
			msg := make([]byte, 8+8192)
			msg[0] = 1
			for {
				if _, _, errno := unix.Syscall6(unix.SYS_MSGSND, id, uintptr(unsafe.Pointer(&msg[0])), 8192, 0o4000, 0, 0); errno != 0 {
					break
				}
			}
		case "file":
			err = appendTo("/dev/shm/eaten", piece)
		default:
			return fmt.Errorf("no memory of kind %q", kind)
		}
		n++
	}
	fmt.Printf("%d pieces of %s, then %s\n", n, kind, answer(err))
	runtime.KeepAlive(keep)
	return forever()
}

func appendTo(path string, n int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, n))
	return errors.Join(err, f.Close())
}

// spin takes a whole processor and never returns.
func spin() error {
	for n := uint64(1); n != 0; n += 2 {
	}
	return nil
}
