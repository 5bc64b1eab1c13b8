package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of clone(2), under names that features.go can read.
const (
	cloneNewUser   = unix.CLONE_NEWUSER
	cloneNewPID    = unix.CLONE_NEWPID
	cloneNewNS     = unix.CLONE_NEWNS
	cloneNewNet    = unix.CLONE_NEWNET
	cloneNewUTS    = unix.CLONE_NEWUTS
	cloneNewIPC    = unix.CLONE_NEWIPC
	cloneNewCgroup = unix.CLONE_NEWCGROUP
)

func checkRoot(context.Context, Options) (string, error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", fmt.Errorf("runs as user %d", uid)
	}
	return "", nil
}

// checkNamespace clones a child into a new namespace. The child's program does not exist, so it ends in execve with
// ENOENT exactly where the clone has worked; nothing of it ever runs.
func checkNamespace(flag uintptr) func(context.Context, Options) (string, error) {
	return func(context.Context, Options) (string, error) {
		pid, err := syscall.ForkExec("/proc/self/no-such-program", []string{"probe"}, &syscall.ProcAttr{
			Sys: &syscall.SysProcAttr{Cloneflags: flag},
		})
		if errors.Is(err, unix.ENOENT) {
			return "", nil
		}
		if err == nil { // cannot be
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, nil, 0, nil)
			return "", errors.New("an impossible program started")
		}
		return "", fmt.Errorf("clone: %w", err)
	}
}

func checkTimeNamespace(context.Context, Options) (string, error) {
	_, err := os.Stat("/proc/self/ns/time")
	return "", err
}

func checkPidfd(context.Context, Options) (string, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return "", fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return "", fmt.Errorf("pidfd_send_signal: %w", err)
	}
	return "", nil
}

func checkOpenat2(context.Context, Options) (string, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return "", fmt.Errorf("openat2: %w", err)
	}
	return "", unix.Close(fd)
}

func checkCloseRange(context.Context, Options) (string, error) {
	const none = ^uint32(0) // no descriptor has this number
	if err := unix.CloseRange(uint(none), uint(none), 0); err != nil {
		return "", fmt.Errorf("close_range: %w", err)
	}
	return "", nil
}

func checkSeccomp(context.Context, Options) (string, error) {
	// SECCOMP_GET_ACTION_AVAIL asks without installing anything.
	action := uint32(seccompRetErrno)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompGetActionAvail, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return "", fmt.Errorf("seccomp: %w", errno)
	}
	return "", nil
}

const (
	seccompSetModeFilter  = 1
	seccompGetActionAvail = 2
	seccompFlagTsync      = 1
	seccompRetErrno       = 0x00050000
	landlockVersionFlag   = 1
)

// checkSeccompTsync asks with a filter at address 0: EFAULT says that the flag is known, and that nothing was installed.
func checkSeccompTsync(context.Context, Options) (string, error) {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, seccompFlagTsync, 0)
	if errno == unix.EFAULT {
		return "", nil
	}
	return "", fmt.Errorf("seccomp: %w", errno)
}

func checkLandlock(context.Context, Options) (string, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, landlockVersionFlag)
	if errno != 0 {
		return "", fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	return strconv.Itoa(int(abi)), nil
}

func checkUserfaultfd(context.Context, Options) (string, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return "", fmt.Errorf("userfaultfd: %w", errno)
	}
	return "", unix.Close(int(fd))
}

// checkSoftDirty looks at the soft-dirty bit (55 of /proc/self/pagemap) of a page that was just written: it is set where
// the kernel keeps it.
func checkSoftDirty(context.Context, Options) (string, error) {
	size := os.Getpagesize()
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(page) //nolint:errcheck // a mapping of our own
	page[0] = 1
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return "", err
	}
	defer f.Close()
	var entry [8]byte
	if _, err := f.ReadAt(entry[:], int64(uintptr(unsafe.Pointer(&page[0])))/int64(size)*8); err != nil {
		return "", err
	}
	if *(*uint64)(unsafe.Pointer(&entry))&(1<<55) == 0 {
		return "", errors.New("the kernel does not track soft-dirty pages")
	}
	return "", nil
}

var criuVersion = regexp.MustCompile(`(?m)^Version: (\S+)`)

func checkCRIU(ctx context.Context, o Options) (string, error) {
	path := o.CRIU
	if path == "" {
		var err error
		if path, err = exec.LookPath("criu"); err != nil {
			return "", errors.New("criu is not on PATH")
		}
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	m := criuVersion.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version says %.60q", path, out)
	}
	version := string(m[1])
	major, _, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(major); err != nil || n < 4 {
		return version, fmt.Errorf("%s is version %s", path, version)
	}
	return version, nil
}

// child is a process in namespaces of its own, stopped before its first instruction, for what needs somebody's namespace.
type child struct {
	pid  int
	done func()
}

// startChild clones a child with the flags of attr that traces itself: it stops when it executes this very program, of
// which nothing runs. It works on a thread of its own, as tracing wants; the thread and the child end with done.
func startChild(attr syscall.SysProcAttr) (*child, error) {
	type result struct {
		pid int
		err error
	}
	started, end, ended := make(chan result), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		attr.Ptrace = true
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"probe"}, &syscall.ProcAttr{Sys: &attr})
		started <- result{pid, err}
		if err != nil {
			return
		}
		<-end
		_ = syscall.Kill(pid, syscall.SIGKILL)
		for {
			var ws syscall.WaitStatus
			_, err := syscall.Wait4(pid, &ws, 0, nil)
			if errors.Is(err, syscall.EINTR) || err == nil && ws.Stopped() {
				continue
			}
			return
		}
	}()
	r := <-started
	if r.err != nil {
		<-ended
		return nil, fmt.Errorf("clone: %w", r.err)
	}
	return &child{pid: r.pid, done: func() { close(end); <-ended }}, nil
}

// probeDir returns a new directory on the file system that layers are on.
func probeDir(o Options) (string, func(), error) {
	dir, err := os.MkdirTemp(o.Dir, ".probe-")
	if err != nil {
		return "", nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	return abs, func() { _ = os.RemoveAll(abs) }, nil
}
