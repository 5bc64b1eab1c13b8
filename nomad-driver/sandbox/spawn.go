package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// The syscall package's own fork cannot do what PID 1 needs between fork and exec, while the child has one thread: join
// cgroup v1 groups without the fork lock of the whole machine, enter a cgroup namespace after that, and drop the bounding
// set (60 µs a capability once the Go runtime of PID 1 has threads, nothing here). See DESIGN.md.

//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

// cloneOnto calls clone3(2) with args and, in the child, the function at the address child, with s, on the stack that args name. In spawn_amd64.s.
//
//go:noescape
func cloneOnto(args *cloneArgs, size uintptr, s *forkSpec, child uintptr) (pid uintptr, errno syscall.Errno)

// childEntry is where the code of runChild begins.
var childEntry = reflect.ValueOf(runChild).Pointer()

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, _, _, exitSignal, stack, stackSize, _, _, _, cgroup uint64
}

type capHeader struct {
	version uint32
	pid     int32
}

type capData [2]struct{ effective, permitted, inheritable uint32 }

// keepID tells setresuid(2) to leave an id alone.
const keepID = ^uintptr(0)

// childStack is what a child has of stack until its exec. It calls nothing but system calls.
const childStack = 16 << 10

// maxTasksFiles is how many cgroup v1 hierarchies a child can join.
const maxTasksFiles = 16

// forkSpec is everything that the child reads and writes. It is made before the fork: the child allocates nothing. The two may share
// their memory until the exec, so it must be on the heap, and stays in lent until then.
type forkSpec struct {
	clone   cloneArgs
	stack   []byte // the child's
	entry   uintptr
	pidfd   int32
	fail    forkFailure                // the child's
	one     [1]byte                    // the child's
	signals uint64                     // blocked ones: none
	boot    int                        // the child's end of the boot socket
	kept    [maxTasksFiles + 4]uintptr // descriptors that the child needs, ascending; it closes all others
	nkept   int
	status  int // write end of the pipe for forkFailure
	null    int // /dev/null of the host, for stdio until PID 1 has its own
	exec    int // the init binary; -1: it is to stand
	tasks   [maxTasksFiles]int
	ntasks  int
	owner   uintptr // host id that the user namespace belongs to
	netns   int     // network namespace that the child is born in, or -1: a new one
	home    int     // the node's own network namespace, where netns is not -1
	capHdr  capHeader
	capFull capData
	capOwn  capData // the node's own
	keep    uint64  // bounding set
	lastCap uintptr
	argv    []*byte
	envv    []*byte
	empty   *byte
}

// forkFailure is what a child that could not exec writes into the status pipe.
type forkFailure struct {
	step  uint32
	errno uint32
}

// What a forkFailure's step was.
const (
	forkSignals uint32 = iota
	forkForget
	forkWait
	forkJoin
	forkIDs
	forkCgroupNS
	forkSession
	forkKeyring
	forkCaps
	forkBounding
	forkFiles
	forkExec
)

var forkStepNames = [...]string{
	"unblock signals", "close the node's descriptors", "wait for id map", "join cgroup", "become id 0", "enter cgroup namespace", "start session", "join keyring",
	"set inheritable capabilities", "drop bounding set", "arrange descriptors", "exec init",
}

// lent are the specs of children that may still run on them: neither seen to have executed nor reaped. One that does neither keeps
// its own for good.
var lent sync.Map // of *forkSpec

// cloneNamespaces are those that every sandbox gets with its PID 1. Without a network namespace to be born in, it gets a new one, too.
const cloneNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// child is a forked PID 1, from fork to its first answer.
type child struct {
	pid    int
	pidfd  *os.File
	boot   *os.File // our end of the boot socket
	status *os.File // read end of the status pipe
	spec   *forkSpec
}

// settled says that the child does not share the node's memory any more.
func (c *child) settled() {
	if c.spec != nil {
		lent.Delete(c.spec)
	}
}

// awaitExec waits until the child has executed init, or says why it could not.
func (c *child) awaitExec() error {
	// The kernel closes the child's end after it has given it the memory of the new program.
	if err := c.awaitStatus(); err != nil {
		return err
	}
	c.settled()
	return nil
}

// awaitStatus waits until the child's end of the status pipe is closed, or returns what it wrote there.
func (c *child) awaitStatus() error {
	var f [unsafe.Sizeof(forkFailure{})]byte
	switch _, err := io.ReadFull(c.status, f[:]); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("hear child: %w", err)
	}
	step, errno := binary.NativeEndian.Uint32(f[:]), unix.Errno(binary.NativeEndian.Uint32(f[4:]))
	name := "unknown step"
	if int(step) < len(forkStepNames) {
		name = forkStepNames[step]
	}
	return fmt.Errorf("child: %s: %w", name, errno)
}

// awaitStand waits until a child that is to stand does, or says why it could not. Until it is reaped it shares the node's memory.
func (c *child) awaitStand() error { return c.awaitStatus() }

// forkInit forks PID 1 into its namespaces, which belong to the host id owner, with keep as its bounding set. It waits there
// for one byte over the boot socket: by then its ids must be mapped. netns is the network namespace that it is born in; nil: a new
// one. On error it may have forked: the child comes back too.
//
// Without init the child only stands for two namespaces: a user namespace, which is the only one that it gets, and, after that byte, the control group namespace
// of its group. It stands there until it is killed.
func forkInit(init *os.File, owner uint32, tasks []*os.File, cgroupFD int, netns *os.File, keep uint64) (_ *child, err error) {
	if len(tasks) > maxTasksFiles {
		return nil, fmt.Errorf("fork init: %d cgroup hierarchies, at most %d", len(tasks), maxTasksFiles)
	}
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make boot socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(sp[1])) }()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("make status pipe: %w", err), unix.Close(sp[0]))
	}
	defer func() { err = errors.Join(err, unix.Close(pipe[1])) }()
	null, err := openNull()
	if err != nil {
		return nil, errors.Join(err, unix.Close(sp[0]), unix.Close(pipe[0]))
	}
	defer func() { err = errors.Join(err, unix.Close(null)) }()

	argv, err := syscall.SlicePtrFromStrings([]string{"soulbox-init"})
	if err != nil {
		return nil, err
	}
	// Settings of PID 1's runtime, not of what it starts. With a second core to run on its threads would wake each other more often than an answer has steps,
	// and beside a loop on that core each of these is a wait.
	envv, err := syscall.SlicePtrFromStrings([]string{"GOMAXPROCS=1", "GOTRACEBACK=none"})
	if err != nil {
		return nil, err
	}
	// The child overwrites descriptors up to BootFD before it execs.
	exec := -1
	if init != nil {
		if exec, err = unix.FcntlInt(init.Fd(), unix.F_DUPFD_CLOEXEC, guest.BootFD+1); err != nil {
			return nil, errors.Join(fmt.Errorf("duplicate init: %w", err), unix.Close(sp[0]), unix.Close(pipe[0]))
		}
		defer func() { err = errors.Join(err, unix.Close(exec)) }()
	}
	status, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_DUPFD_CLOEXEC, guest.BootFD+1)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("duplicate status pipe: %w", err), unix.Close(sp[0]), unix.Close(pipe[0]))
	}
	defer func() { err = errors.Join(err, unix.Close(status)) }()

	s := &forkSpec{
		boot: sp[1], status: status, null: null, exec: exec, ntasks: len(tasks), owner: uintptr(owner),
		capHdr: capHeader{version: unix.LINUX_CAPABILITY_VERSION_3}, keep: keep, lastCap: lastCapability(),
		argv: argv, envv: envv, empty: new(byte), netns: -1, home: -1, stack: make([]byte, childStack), entry: childEntry,
	}
	// Handlers are the Go runtime's, and none of the child's.
	flags := uint64(unix.CLONE_NEWUSER | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND)
	if init != nil {
		flags |= cloneNamespaces
	}
	if owner != 0 || looksAtAll() {
		// No copy of the node's memory, of which each page would be copied again when the node next writes it: the dearest part of
		// a create. Not where the node owns the namespaces and lacks the capability to look at a process that is not dumpable: the change of ids in
		// the child makes the memory that it shares so.
		flags |= unix.CLONE_VM
	}
	switch {
	case init == nil:
	case netns == nil:
		flags |= unix.CLONE_NEWNET
	default:
		home, err := hostNet()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("own network namespace: %w", err), unix.Close(sp[0]), unix.Close(pipe[0]))
		}
		s.netns, s.home = int(netns.Fd()), int(home.Fd())
	}
	for i := range s.capFull {
		for c := range uintptr(32) {
			if uintptr(i)*32+c <= s.lastCap {
				s.capFull[i].effective |= 1 << c
			}
		}
		s.capFull[i].permitted, s.capFull[i].inheritable = s.capFull[i].effective, s.capFull[i].effective
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&s.capHdr)), uintptr(unsafe.Pointer(&s.capOwn)), 0); e != 0 {
		return nil, errors.Join(fmt.Errorf("get own capabilities: %w", e), unix.Close(sp[0]), unix.Close(pipe[0]))
	}
	for i, f := range tasks {
		s.tasks[i] = int(f.Fd())
	}
	s.keepFiles()
	s.clone = cloneArgs{
		flags: flags, pidfd: uint64(uintptr(unsafe.Pointer(&s.pidfd))), exitSignal: uint64(unix.SIGCHLD),
		stack: uint64(uintptr(unsafe.Pointer(&s.stack[0]))), stackSize: childStack - stackMargin,
	}
	if cgroupFD >= 0 {
		s.clone.flags |= unix.CLONE_INTO_CGROUP
		s.clone.cgroup = uint64(cgroupFD)
	}
	lent.Store(s, nil)
	pid, errno := fork(s)
	runtime.KeepAlive(tasks)
	runtime.KeepAlive(netns)
	if errno != 0 {
		lent.Delete(s)
		return nil, errors.Join(fmt.Errorf("clone into new namespaces: %w", errno), unix.Close(sp[0]), unix.Close(pipe[0]))
	}
	// Non-blocking, so that waiting for its end takes a place in the poller and no thread.
	nerr := errors.Join(unix.SetNonblock(int(s.pidfd), true), unix.SetNonblock(sp[0], true), unix.SetNonblock(pipe[0], true))
	c := &child{pid: int(pid), pidfd: os.NewFile(uintptr(s.pidfd), "pidfd"), boot: os.NewFile(uintptr(sp[0]), "boot socket"), status: os.NewFile(uintptr(pipe[0]), "status pipe"), spec: s}
	if nerr != nil {
		return c, fmt.Errorf("prepare descriptors: %w", nerr)
	}
	return c, nil
}

// looksAtAll reports whether this process may look at others that are not dumpable.
var looksAtAll = sync.OnceValue(func() bool { return hasCapability(unix.CAP_SYS_PTRACE) })

// hasCapability reports whether this thread has a capability.
func hasCapability(c int) bool {
	hdr := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(hdr, &data[0]) == nil && data[c/32].Effective&(1<<(c%32)) != 0
}

// keepFiles lists the descriptors that the child needs until its exec.
func (s *forkSpec) keepFiles() {
	kept := []uintptr{uintptr(s.boot), uintptr(s.status), uintptr(s.null)}
	if s.exec >= 0 {
		kept = append(kept, uintptr(s.exec))
	}
	for _, fd := range s.tasks[:s.ntasks] {
		kept = append(kept, uintptr(fd))
	}
	slices.Sort(kept)
	s.nkept = copy(s.kept[:], slices.Compact(kept))
}

// openNull opens /dev/null of the host, for PID 1 to have as stdio, and makes sure that it is no other file by that name.
func openNull() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/null: %w", err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3)) {
		err = errors.New("it is another file")
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("open /dev/null: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// fork clones. The child goes on in runChild.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(s *forkSpec) (pid uintptr, errno syscall.Errno) {
	var e syscall.Errno
	runtimeBeforeFork()
	// The child is born in its network namespace: to enter it later it would need capabilities over the host's user namespace.
	// This thread is there for the moment of the clone; nothing else runs on it meanwhile.
	if s.netns >= 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETNS, uintptr(s.netns), unix.CLONE_NEWNET, 0); errno != 0 {
			runtimeAfterFork()
			return 0, errno
		}
	}
	// What the kernel counts for each user (inotify instances, locked memory, pending signals, message queues) it also counts
	// for the owner of the user's namespace: were that root, one sandbox could take all that the machine has. The owner
	// is who clones: this thread, which keeps its capabilities, and is root again before anything else runs on it.
	_, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, keepID, s.owner, keepID)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&s.capHdr)), uintptr(unsafe.Pointer(&s.capOwn)), 0)
	}
	if errno == 0 {
		pid, errno = cloneOnto(&s.clone, unsafe.Sizeof(s.clone), s, s.entry)
	}
	// Back to the real id, whose permitted capabilities become effective again.
	_, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, keepID, 0, keepID)
	if e == 0 && s.netns >= 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(s.home), unix.CLONE_NEWNET, 0)
	}
	runtimeAfterFork()
	if e != 0 {
		panic("sandbox: the thread that forked cannot become root in the host's network again")
	}
	return pid, errno
}

// stackMargin is what a Go function may use above its frame, for its arguments.
const stackMargin = 64

// runChild is the child from its birth to its exec, or to where it stands. It must not grow its stack, allocate, lock or schedule: the runtime knows nothing of
// it, and runs on in the same memory, or, in a copy of that, not at all. So there are only raw system calls, and what it writes is
// its own part of the spec.
//
//go:nosplit
//go:noinline
//go:norace
//go:nocheckptr
func runChild(s *forkSpec) {
	var (
		e syscall.Errno
		n uintptr
	)
	s.fail.step = forkSignals
	if _, _, e = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&s.signals)), 0, unsafe.Sizeof(s.signals), 0, 0); e != 0 {
		goto failed
	}
	// Nothing of the node's stays open in who waits: not our end of the boot socket, so that the read ends when the node dies,
	// nor that of a sandbox forked at the same time. Two that held each other's would wait for ever, with the node's
	// connections open.
	s.fail.step = forkForget
	for i := 0; i <= s.nkept; i++ {
		first, last := uintptr(0), ^uintptr(0)>>32
		if i > 0 {
			first = s.kept[i-1] + 1
		}
		if i < s.nkept {
			last = s.kept[i] - 1
		}
		if i < s.nkept && s.kept[i] == 0 || first > last {
			continue
		}
		if _, _, e = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, first, last, 0); e != 0 {
			goto failed
		}
	}
	s.fail.step = forkWait
	for {
		n, _, e = syscall.RawSyscall(unix.SYS_READ, uintptr(s.boot), uintptr(unsafe.Pointer(&s.one)), 1)
		if e != syscall.EINTR {
			break
		}
	}
	if e != 0 || n != 1 {
		goto failed
	}

	// Writing 0 moves the calling thread without the lock that stops all forks of the machine for an RCU grace period;
	// this process has no other thread. The kernel checks the rights of who opened the file: the node.
	s.fail.step = forkJoin
	s.one[0] = '0'
	for i := 0; i < s.ntasks; i++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_WRITE, uintptr(s.tasks[i]), uintptr(unsafe.Pointer(&s.one)), 1); e != 0 {
			goto failed
		}
	}

	if s.exec < 0 {
		s.fail.step = forkCgroupNS
		if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0); e != 0 {
			goto failed
		}
		syscall.RawSyscall(unix.SYS_CLOSE, uintptr(s.status), 0, 0)
		for { // until the node has ended, if it does not end this one before
			if _, _, e = syscall.RawSyscall(unix.SYS_READ, uintptr(s.boot), uintptr(unsafe.Pointer(&s.one)), 1); e != syscall.EINTR {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
	}

	s.fail.step = forkIDs
	if _, _, e = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		goto failed
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); e != 0 {
		goto failed
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); e != 0 {
		goto failed
	}
	s.fail.step = forkCgroupNS
	if _, _, e = syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0); e != 0 {
		goto failed
	}
	s.fail.step = forkSession
	if _, _, e = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		goto failed
	}
	// An anonymous session keyring instead of the host's. A kernel without keys has nothing to leave.
	s.fail.step = forkKeyring
	if _, _, e = syscall.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); e != 0 && e != syscall.ENOSYS {
		goto failed
	}
	// Inheritable capabilities survive an exec whatever the bounding set is. PID 1 gives them all up after its set-up.
	s.fail.step = forkCaps
	if _, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&s.capHdr)), uintptr(unsafe.Pointer(&s.capFull)), 0); e != 0 {
		goto failed
	}
	s.fail.step = forkBounding
	for c := uintptr(0); c <= s.lastCap; c++ {
		if s.keep&(1<<c) == 0 {
			if _, _, e = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); e != 0 {
				goto failed
			}
		}
	}
	// Nothing but stdio and the boot socket survives the exec.
	s.fail.step = forkFiles
	for fd := uintptr(0); fd < 3; fd++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(s.null), fd, 0); e != 0 {
			goto failed
		}
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, guest.BootFD+1, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC); e != 0 {
		goto failed
	}
	if s.boot == guest.BootFD {
		_, _, e = syscall.RawSyscall(unix.SYS_FCNTL, guest.BootFD, unix.F_SETFD, 0)
	} else {
		_, _, e = syscall.RawSyscall(unix.SYS_DUP3, uintptr(s.boot), guest.BootFD, 0)
	}
	if e != 0 {
		goto failed
	}
	s.fail.step = forkExec
	_, _, e = syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(s.exec), uintptr(unsafe.Pointer(s.empty)),
		uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envv[0])), unix.AT_EMPTY_PATH, 0)

failed:
	s.fail.errno = uint32(e)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(s.status), uintptr(unsafe.Pointer(&s.fail)), unsafe.Sizeof(s.fail))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
