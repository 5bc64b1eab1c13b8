//go:build race

package handover

import "syscall"

// nothing is a descriptor that has nothing to read.
var nothing, _ = syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)

// ordered tells the race detector that what was written to a connection came before what has been read from it. It knows that of read(2) and write(2),
// and not of recvmsg(2).
func ordered() { _, _ = syscall.Read(nothing, make([]byte, 1)) }
