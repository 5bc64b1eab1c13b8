package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// hold has a CRIU that waits for an answer of ours have our end of its socket too, from now on until its end. It would take our death for an answer: after the
// last one that counts it lets go of all that it has restored, frozen or not. So it goes on waiting, with everything stopped, until the next daemon, which finds it
// noted, has killed first what it holds and then CRIU.
func (w *worker) hold() error {
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	return traced(w.pid(), func(c tracee) error {
		return c.fromHere(func(take func(*os.File) (uint64, error)) error {
			_, err := take(w.sk)
			return err
		})
	})
}

// fromHere lets a stopped process take copies of this process's descriptors while f runs. take returns their numbers there; they are closed on exec.
func (t tracee) fromHere(f func(take func(*os.File) (uint64, error)) error) error {
	us, err := t.result(unix.SYS_PIDFD_OPEN, uint64(os.Getpid()), 0)
	if err != nil {
		return fmt.Errorf("open this process: %w", err)
	}
	err = f(func(from *os.File) (there uint64, err error) {
		raw, err := from.SyscallConn()
		if err != nil {
			return 0, err
		}
		cerr := raw.Control(func(fd uintptr) { there, err = t.result(unix.SYS_PIDFD_GETFD, us, uint64(fd), 0) })
		if err = errors.Join(err, cerr); err != nil {
			return 0, fmt.Errorf("take %s: %w", from.Name(), err)
		}
		return there, nil
	})
	return errors.Join(err, t.call(unix.SYS_CLOSE, us))
}
