package pid1

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is the kernel's struct of rt_sigaction(2) on 64-bit machines.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	sigDefault   = 0
	lastSignal   = 64
	sigsetLength = 8 // bytes
)

// ownSignals are those whose handlers PID 1's runtime needs: faults of its own, its threads' calls to each other, pipes, and SIGTERM, which is
// an order. The three numbers are a C library's, where there is one.
var ownSignals = [lastSignal + 1]bool{
	unix.SIGSEGV: true, unix.SIGBUS: true, unix.SIGFPE: true, unix.SIGILL: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGTERM: true,
	32: true, 33: true, 34: true,
}

// defaultSignals gives all other signals their default action. For one thing it ends what PID 1 inherited of ignored ones: whoever started the
// node, a shell in the background or nohup, may have ignored some, and every process of the sandbox would, without a way to know. For
// another it keeps PID 1 alive: the kernel drops a signal that a PID 1 has no handler for, whoever of its namespace has sent it, where a
// handler of the runtime would end it. To catch and drop each would take as much time as all the rest of Run.
func defaultSignals() {
	action := sigaction{handler: sigDefault}
	for n := uintptr(1); n <= lastSignal; n++ {
		if !ownSignals[n] {
			// It fails for SIGKILL and SIGSTOP only.
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&action)), 0, sigsetLength, 0, 0)
		}
	}
}
