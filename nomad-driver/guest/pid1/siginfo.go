package pid1

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPID reads si_pid, which x/sys does not name. It is the first field of the union, which begins at the first multiple
// of a pointer's alignment behind three ints: 16 on 64-bit machines (asm-generic/siginfo.h).
func siginfoPID(i *unix.Siginfo) int {
	const offset = 16
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(i), offset)))
}
