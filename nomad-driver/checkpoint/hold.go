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
// noted, has killed first what it holds and then CRIU. watch is CRIU's descriptor of its end of the deadman's pipe, which becomes its last one: see guard.
func (w *worker) hold(watch int) error {
	last, err := w.lastFile()
	if err != nil {
		return err
	}
	return w.fromHere(func(c tracee, take func(*os.File) (uint64, error)) error {
		if _, err := take(w.sk); err != nil {
			return err
		}
		if _, err := c.result(unix.SYS_FCNTL, uint64(watch), unix.F_DUPFD_CLOEXEC, last); err != nil {
			return fmt.Errorf("move the watch of criu: %w", err)
		}
		return nil
	})
}

// lastFile is a descriptor above all that a CRIU opens, but for what it moves to the end of what it may have.
func (w *worker) lastFile() (uint64, error) {
	var files unix.Rlimit
	if err := unix.Prlimit(w.pid(), unix.RLIMIT_NOFILE, nil, &files); err != nil {
		return 0, fmt.Errorf("limits of criu: %w", err)
	}
	return min(files.Cur/2, 1<<16), nil
}

// guard has a CRIU itself hold what kills the processes that it restores when it ends, for as long as that is not disarmed: else the kill of this process and
// of CRIU, as of all that is in one control group, would let them run. A process that ends closes its descriptors from the lowest to the highest, and
// the kernel is done with the last one first (close_files in fs/file.c, task_work_run in kernel/task_work.c): that is its end of the pipe. Of
// more processes than half of what is below that, which CRIU needs the rest of, it holds no more.
func (w *worker) guard(armed []*os.File) error {
	last, err := w.lastFile()
	if err != nil {
		return err
	}
	armed = armed[:min(uint64(len(armed)), last/2)]
	return w.fromHere(func(_ tracee, take func(*os.File) (uint64, error)) error {
		for _, f := range armed {
			if _, err := take(f); err != nil {
				return err
			}
		}
		return nil
	})
}

// fromHere stops a worker that waits for an answer of ours while f runs. take has it take a copy of a descriptor of this process, and returns its
// number there; it is closed on exec.
func (w *worker) fromHere(f func(c tracee, take func(*os.File) (uint64, error)) error) error {
	runtime.LockOSThread() // who traces is a thread
	defer runtime.UnlockOSThread()
	return traced(w.pid(), func(c tracee) error {
		us, err := c.result(unix.SYS_PIDFD_OPEN, uint64(os.Getpid()), 0)
		if err != nil {
			return fmt.Errorf("open this process: %w", err)
		}
		err = f(c, func(from *os.File) (there uint64, err error) {
			raw, err := from.SyscallConn()
			if err != nil {
				return 0, err
			}
			cerr := raw.Control(func(fd uintptr) { there, err = c.result(unix.SYS_PIDFD_GETFD, us, uint64(fd), 0) })
			if err = errors.Join(err, cerr); err != nil {
				return 0, fmt.Errorf("take %s: %w", from.Name(), err)
			}
			return there, nil
		})
		return errors.Join(err, c.call(unix.SYS_CLOSE, us))
	})
}
