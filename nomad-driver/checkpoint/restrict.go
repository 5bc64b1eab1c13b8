package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
)

// CRIU knows nothing of Landlock, whose domains no kernel tells of. But all that it restores takes after the root: so the root, while it is
// alone, is made to enter the domain. Nothing but itself can do that, so it is stopped on its way into a system call, makes the one
// that is wanted, and then its own. That takes a tracer, which is CRIU: it has to let go of the root meanwhile, and does so in the same way.

// restrict lets process root call landlock_restrict_self(2) with its descriptor rules. Both are children of this process with one thread;
// criu, which traces root, waits for an answer of ours.
func restrict(criu, root, rules int) error {
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	err := traced(criu, func(c tracee) error {
		pid := uint64(root)
		if err := c.call(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, pid); err != nil {
			return fmt.Errorf("stop the root: %w", err)
		}
		if err := c.call(unix.SYS_WAIT4, pid, 0, unix.WALL); err != nil {
			return fmt.Errorf("await the root: %w", err)
		}
		if err := c.call(unix.SYS_PTRACE, unix.PTRACE_DETACH, pid); err != nil {
			return fmt.Errorf("let go of the root: %w", err)
		}
		err := traced(root, func(r tracee) error { return r.call(unix.SYS_LANDLOCK_RESTRICT_SELF, uint64(rules)) })
		if err != nil {
			return fmt.Errorf("the root: %w", err)
		}
		if err := c.call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, pid); err != nil {
			return fmt.Errorf("take the root again: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("restrict process %d by landlock rules: %w", root, err)
	}
	return nil
}

// tracee is a process that this thread traces.
type tracee struct{ pid int }

// syscallSize is the length of the instruction that makes a system call, on amd64.
const syscallSize = 2

// traced runs f while this thread, to which the calling goroutine is locked, traces process pid, which is stopped.
func traced(pid int, f func(tracee) error) (err error) {
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	t := tracee{pid}
	defer func() { err = errors.Join(err, unix.PtraceDetach(pid)) }()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	if _, err := t.stopped(); err != nil {
		return err
	}
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	return f(t)
}

// call lets the stopped process make a system call in place of its next one, which it will make when it goes on.
func (t tracee) call(number uint64, args ...uint64) error {
	_, err := t.result(number, args...)
	return err
}

// result is call, and returns what the system call has returned.
func (t tracee) result(number uint64, args ...uint64) (uint64, error) {
	if err := t.toCall(); err != nil {
		return 0, err
	}
	var own unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.pid, &own); err != nil {
		return 0, err
	}
	regs := own
	regs.Orig_rax, regs.Rdi, regs.Rsi, regs.Rdx, regs.R10 = number, 0, 0, 0, 0
	for i, r := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx}[:len(args)] {
		*r = args[i]
	}
	if err := unix.PtraceSetRegs(t.pid, &regs); err != nil {
		return 0, err
	}
	if err := t.toCall(); err != nil { // its end
		return 0, err
	}
	if err := unix.PtraceGetRegs(t.pid, &regs); err != nil {
		return 0, err
	}
	own.Rip, own.Rax = own.Rip-syscallSize, own.Orig_rax
	if err := unix.PtraceSetRegs(t.pid, &own); err != nil {
		return 0, err
	}
	if r := int64(regs.Rax); r < 0 {
		return 0, syscall.Errno(-r)
	}
	return regs.Rax, nil
}

// toCall lets the stopped process go on to the beginning or end of a system call. What it gets of signals meanwhile is what the stops of the
// other one cause, and means nothing to it: it has no signal but those that it has asked for, of which a lost one ends nothing.
func (t tracee) toCall() error {
	for {
		if err := unix.PtraceSyscall(t.pid, 0); err != nil {
			return fmt.Errorf("let process %d go on: %w", t.pid, err)
		}
		if at, err := t.stopped(); err != nil || at {
			return err
		}
	}
}

// stopped waits until the process has stopped, and reports whether it is at a system call.
func (t tracee) stopped() (call bool, err error) {
	var info struct { // siginfo_t of waitid(2), on 64 bits
		signo, errno, code, _ int32
		pid, uid, status      int32
		_                     [100]byte
	}
	for {
		// One that has ended is left for whoever reaps it.
		err := unix.Waitid(unix.P_PID, t.pid, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT|unix.WALL, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("await process %d: %w", t.pid, err)
		}
	}
	const trapped = 4 // CLD_TRAPPED
	if info.code != trapped {
		return false, fmt.Errorf("process %d has ended", t.pid)
	}
	return info.status == int32(unix.SIGTRAP)|0x80, nil
}

// mountsMagic begins an image of mounts, after commonMagic.
const mountsMagic = 0x55563928

// maxImage bounds an image of mounts.
const maxImage = 1 << 20

// OpenBuilt opens a directory that is a mount of what is being restored, when Built is called: CRIU has made the mounts by then, each in a
// folder of its own that has the name of its number in the images.
func OpenBuilt(pid int, images, point string) (*os.File, error) {
	id, err := mountID(images, point)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	folder := fmt.Sprintf("/mnt-%010d", id)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(f[4], "/.criu.mntns.") && strings.HasSuffix(f[4], folder) {
			return os.OpenFile(fmt.Sprintf("/proc/%d/root%s", pid, f[4]), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		}
	}
	return nil, fmt.Errorf("criu has no mount %d, which is %s, among those of process %d", id, point, pid)
}

// mountID returns the number of a mount in the images.
func mountID(images, point string) (uint32, error) {
	found, err := filepath.Glob(filepath.Join(images, "mountpoints-*.img"))
	if err != nil || len(found) != 1 {
		return 0, fmt.Errorf("images have %d mount namespaces, want 1", len(found))
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		return 0, err
	}
	bad := fmt.Errorf("image %s is not one of mounts", filepath.Base(found[0]))
	if len(b) < 8 || len(b) > maxImage || binary.LittleEndian.Uint32(b) != commonMagic || binary.LittleEndian.Uint32(b[4:]) != mountsMagic {
		return 0, bad
	}
	for b = b[8:]; len(b) >= 4; {
		size := binary.LittleEndian.Uint32(b)
		if b = b[4:]; uint64(size) > uint64(len(b)) {
			return 0, bad
		}
		var e mnt.MntEntry
		if err := proto.Unmarshal(b[:size], &e); err != nil {
			return 0, fmt.Errorf("%w: %w", bad, err)
		}
		if e.GetMountpoint() == point {
			return e.GetMntId(), nil
		}
		b = b[size:]
	}
	return 0, fmt.Errorf("image %s has no mount %s", filepath.Base(found[0]), point)
}
