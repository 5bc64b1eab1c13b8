package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
)

// A userfaultfd is for the memory of whoever makes it. Processes of a sandbox may not, and their user namespace has no say in it: so each one that gets memory
// later is handed the device that makes one, makes it, and gives it away, by system calls that it is made to make while it stands still.

// held are threads of processes that this thread has stopped, and that have not run since.
type held struct{ threads []tracee }

// holdAll stops all threads of processes that are frozen now: thaw lets go of what has frozen them. It has to be called, and all else done, on one thread, which ends
// then. What has not been released by its end is killed, also where this process is, or where this fails: none of them must run.
func holdAll(pids []int, thaw func() error) (*held, error) {
	h := &held{}
	for _, pid := range pids {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return nil, err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil {
				return nil, err
			}
			state, err := procstat.OfThread(pid, tid)
			if err != nil {
				return nil, err
			}
			if state.Ended() {
				continue
			}
			if err := seize(tid, unix.PTRACE_O_EXITKILL); err != nil {
				return nil, fmt.Errorf("trace thread %d: %w", tid, err)
			}
			h.threads = append(h.threads, tracee{tid})
			if err := unix.PtraceInterrupt(tid); err != nil {
				return nil, fmt.Errorf("stop thread %d: %w", tid, err)
			}
		}
	}
	if err := thaw(); err != nil {
		return nil, err
	}
	for _, t := range h.threads {
		if _, err := t.stopped(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// seize begins to trace a thread with options, which hold from the first moment on.
func seize(tid int, options uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// release lets go of all. Where one has ended there is nothing to let go of.
func (h *held) release() error {
	var errs []error
	for _, t := range h.threads {
		if err := unix.PtraceDetach(t.pid); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("let go of thread %d: %w", t.pid, err))
		}
	}
	return errors.Join(errs...)
}

// remote is a stopped process that makes system calls for this one.
type remote struct {
	tracee
	own    unix.PtraceRegs
	mask   uint64 // its signals
	insn   uint64 // where it has the instruction
	mem    *os.File
	pidfd  int
	called bool
}

const (
	ptraceGetSigmask = 0x420a
	ptraceSetSigmask = 0x420b
	suspendSeccomp   = 1 << 21 // PTRACE_O_SUSPEND_SECCOMP
)

// begin readies a stopped process. end has to be called.
func (t tracee) begin() (_ *remote, err error) {
	r := &remote{tracee: t, pidfd: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	// Its own filter of system calls would refuse these.
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_EXITKILL|unix.PTRACE_O_TRACESYSGOOD|suspendSeccomp); err != nil {
		return nil, fmt.Errorf("trace process %d: %w", t.pid, err)
	}
	if err := unix.PtraceGetRegs(t.pid, &r.own); err != nil {
		return nil, err
	}
	if err := r.sigmask(ptraceGetSigmask, &r.mask); err != nil {
		return nil, err
	}
	if r.mem, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", t.pid), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if r.insn, err = r.findSyscall(); err != nil {
		return nil, err
	}
	if r.pidfd, err = unix.PidfdOpen(t.pid, 0); err != nil {
		return nil, fmt.Errorf("open process %d: %w", t.pid, err)
	}
	// A signal that it would be told of now would be lost.
	all := ^uint64(0)
	if err := r.sigmask(ptraceSetSigmask, &all); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *remote) sigmask(call int, mask *uint64) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(call), uintptr(r.pid), unsafe.Sizeof(*mask), uintptr(unsafe.Pointer(mask)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("signals of process %d: %w", r.pid, errno)
	}
	return nil
}

// findSyscall finds a system call's instruction in what the process executes: in the kernel's own part of it, or else in any other.
func (r *remote) findSyscall() (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", r.pid))
	if err != nil {
		return 0, err
	}
	var rest []string
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); {
		case len(f) > 5 && f[5] == "[vdso]":
			if at, ok := r.syscallIn(f[0]); ok {
				return at, nil
			}
		case len(f) > 5 && strings.HasPrefix(f[1], "r-x") && f[5] != "[vsyscall]":
			rest = append(rest, f[0])
		}
	}
	for _, m := range rest {
		if at, ok := r.syscallIn(m); ok {
			return at, nil
		}
	}
	return 0, fmt.Errorf("process %d has no system call in its code", r.pid)
}

func (r *remote) syscallIn(mapping string) (uint64, bool) {
	const most = 4 << 20
	var from, to uint64
	if _, err := fmt.Sscanf(mapping, "%x-%x", &from, &to); err != nil {
		return 0, false
	}
	b := make([]byte, min(to-from, most))
	n, _ := r.mem.ReadAt(b, int64(from)) // what cannot be read has none
	if i := bytes.Index(b[:n], []byte{0x0f, 0x05}); i >= 0 {
		return from + uint64(i), true
	}
	return 0, false
}

// call makes one system call.
func (r *remote) call(number uint64, args ...uint64) (uint64, error) {
	regs := r.own
	regs.Orig_rax, regs.Rax, regs.Rip = ^uint64(0), number, r.insn
	for i, to := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9} {
		if *to = 0; i < len(args) {
			*to = args[i]
		}
	}
	r.called = true
	if err := unix.PtraceSetRegs(r.pid, &regs); err != nil {
		return 0, err
	}
	for range 2 { // its beginning and its end
		if err := r.toCall(); err != nil {
			return 0, err
		}
	}
	if err := unix.PtraceGetRegs(r.pid, &regs); err != nil {
		return 0, err
	}
	if e := int64(regs.Rax); e < 0 && e > -4096 {
		return 0, syscall.Errno(-e)
	}
	return regs.Rax, nil
}

// end makes the process what it was: stopped as it has been found, where the kernel also goes on with a call that it was in.
func (r *remote) end() error {
	var errs []error
	if r.called {
		errs = append(errs, unix.PtraceSetRegs(r.pid, &r.own), unix.PtraceInterrupt(r.pid), unix.PtraceCont(r.pid, 0))
		if errors.Join(errs...) == nil {
			_, err := r.stopped()
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, r.sigmask(ptraceSetSigmask, &r.mask), r.close())...)
}

func (r *remote) close() error {
	var errs []error
	if r.mem != nil {
		errs = append(errs, r.mem.Close())
	}
	if r.pidfd >= 0 {
		errs = append(errs, unix.Close(r.pidfd))
	}
	return errors.Join(errs...)
}

// Where in its page for such things the process has what.
const (
	atSockets = 0
	atMessage = 64
	atVector  = 256
	atByte    = 320
	atControl = 512
)

// userfaultfd has the process make a userfaultfd for its memory with the open device, and returns it. Nothing of it is left there.
func (r *remote) userfaultfd(device int) (_ int, err error) {
	page, err := r.call(unix.SYS_MMAP, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return -1, fmt.Errorf("map a page: %w", err)
	}
	undo := func(number uint64, args ...uint64) {
		_, uerr := r.call(number, args...)
		err = errors.Join(err, uerr)
	}
	defer func() { undo(unix.SYS_MUNMAP, page, pageSize) }()
	if _, err := r.call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0, page+atSockets); err != nil {
		return -1, fmt.Errorf("make sockets: %w", err)
	}
	var sockets [8]byte
	if _, err := r.mem.ReadAt(sockets[:], int64(page+atSockets)); err != nil {
		return -1, err
	}
	near, far := uint64(binary.LittleEndian.Uint32(sockets[:])), uint64(binary.LittleEndian.Uint32(sockets[4:]))
	defer func() { undo(unix.SYS_CLOSE, near); undo(unix.SYS_CLOSE, far) }()
	if err := r.send(int(near), device); err != nil {
		return -1, err
	}
	var msg [56]byte // struct msghdr
	binary.LittleEndian.PutUint64(msg[16:], page+atVector)
	binary.LittleEndian.PutUint64(msg[24:], 1)
	binary.LittleEndian.PutUint64(msg[32:], page+atControl)
	binary.LittleEndian.PutUint64(msg[40:], uint64(unix.CmsgSpace(4)))
	var vector [16]byte
	binary.LittleEndian.PutUint64(vector[:], page+atByte)
	binary.LittleEndian.PutUint64(vector[8:], 1)
	for at, b := range map[uint64][]byte{atMessage: msg[:], atVector: vector[:]} {
		if _, err := r.mem.WriteAt(b, int64(page+at)); err != nil {
			return -1, err
		}
	}
	if _, err := r.call(unix.SYS_RECVMSG, far, page+atMessage, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT); err != nil {
		return -1, fmt.Errorf("receive the device: %w", err)
	}
	var control [20]byte
	if _, err := r.mem.ReadAt(control[:], int64(page+atControl)); err != nil {
		return -1, err
	}
	if binary.LittleEndian.Uint32(control[12:]) != unix.SCM_RIGHTS {
		return -1, errors.New("the device did not arrive")
	}
	there := uint64(binary.LittleEndian.Uint32(control[16:]))
	defer func() { undo(unix.SYS_CLOSE, there) }()
	fd, err := r.call(unix.SYS_IOCTL, there, pager.IoctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("make a userfaultfd: %w", err)
	}
	defer func() { undo(unix.SYS_CLOSE, fd) }()
	return unix.PidfdGetfd(r.pidfd, int(fd), 0)
}

// send sends a descriptor through the process's own socket.
func (r *remote) send(socket, fd int) error {
	mine, err := unix.PidfdGetfd(r.pidfd, socket, 0)
	if err != nil {
		return fmt.Errorf("take its socket: %w", err)
	}
	defer unix.Close(mine)
	return unix.Sendmsg(mine, []byte{0}, unix.UnixRights(fd), nil, 0)
}
