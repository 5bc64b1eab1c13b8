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
	sigIgnored   = 1
	lastSignal   = 64
	sigsetLength = 8 // bytes
)

// ownSignals are those whose handlers PID 1's runtime needs: faults of its own, its threads' calls to each other, pipes, and SIGTERM, which is
// an order. The three numbers are a C library's, where there is one.
var ownSignals = [lastSignal + 1]bool{
	unix.SIGSEGV: true, unix.SIGBUS: true, unix.SIGFPE: true, unix.SIGILL: true, unix.SIGURG: true, unix.SIGPIPE: true, unix.SIGTERM: true,
	32: true, 33: true, 34: true,
}

// defaultSignals gives all other signals their default action, and those of ownSignals that are ignored, not handled. For one thing it ends
// what PID 1 inherited of ignored ones: whoever started the node, a shell in the background, nohup or a C library that ignores one of its own
// numbers, may have ignored some, and every process of the sandbox would, without a way to know. For another it keeps PID 1 alive: the
// kernel drops a signal that a PID 1 has no handler for, whoever of its namespace has sent it, where a handler of the runtime would end it.
// To catch and drop each would take as much time as all the rest of Run.
func defaultSignals() {
	for n := 1; n <= lastSignal; n++ {
		if !ownSignals[n] || disposition(n) == sigIgnored {
			setDisposition(n, sigDefault)
		}
	}
}

// disposition is what the process does at signal n: sigDefault, sigIgnored, or the address of a handler.
func disposition(n int) uintptr {
	var now sigaction
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), 0, uintptr(unsafe.Pointer(&now)), sigsetLength, 0, 0)
	return now.handler
}

// setDisposition fails for SIGKILL and SIGSTOP only, which can have no other than the default one.
func setDisposition(n int, handler uintptr) {
	action := sigaction{handler: handler}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&action)), 0, sigsetLength, 0, 0)
}
