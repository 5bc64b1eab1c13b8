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
	sigIgnore    = 1
	lastSignal   = 64
	sigsetLength = 8 // bytes
)

// heedSignals ends what PID 1 inherited of ignored signals. Whoever started the node, a shell in the background or nohup,
// may have ignored some; across fork and exec every process of the sandbox would, without a way to know.
func heedSignals() {
	for n := uintptr(1); n <= lastSignal; n++ {
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, 0, uintptr(unsafe.Pointer(&now)), sigsetLength, 0, 0)
		if errno != 0 || now.handler != sigIgnore {
			continue
		}
		now = sigaction{handler: sigDefault}
		// It fails for no signal that can be ignored.
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&now)), 0, sigsetLength, 0, 0)
	}
}
