// Package osthread runs functions on operating system threads that end with them, and says how the scheduler shall treat this process's.
//
// It owns the choice of the thread. It never changes one but in its turns of the processor: what a function does to its thread
// (namespaces, credentials) is its own business, and gone with it.
package osthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ThrowAway runs f on a thread that ends when f returns, and waits for f. It is never the main thread: that one cannot end, and its
// /proc entries are those of the whole process, so that a changed mount namespace there would be the one that everybody sees in
// /proc/self.
func ThrowAway(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(f)
	}()
	<-done
}

func run(f func()) {
	runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	// As long as this goroutine holds the main thread, another one cannot get it.
	ThrowAway(f)
	runtime.UnlockOSThread()
}
