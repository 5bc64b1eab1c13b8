package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// deadman ends the processes that a CRIU has restored when that CRIU dies before they are frozen. They are its tracees, and the end of a
// tracer lets its tracees run: they would write to the files of a sandbox that is to be restored again.
//
// CRIU holds the only writing end of a pipe. This process has the reading end open once for each of them, with SIGKILL to it as what tells that
// the pipe has changed (fcntl(2), F_SETSIG and F_SETOWN). A process that ends closes its descriptors before it lets its tracees go (do_exit in
// kernel/exit.c: exit_task_work comes before exit_notify), so the signal is there before they are. CRIU has one thread; of several the last one
// would count. PID 1 of the sandbox, which is ours and writes no file of the sandbox's, is the one that such a signal does not reach.
type deadman struct {
	read, write *os.File
	armed       []*os.File // the reading end, opened once for each process
}

func newDeadman() (*deadman, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make pipe to watch criu by: %w", err)
	}
	return &deadman{read: os.NewFile(uintptr(p[0]), "criu watch"), write: os.NewFile(uintptr(p[1]), "criu's end of its watch")}, nil
}

// handedOver lets go of CRIU's end, once CRIU has it.
func (d *deadman) handedOver() error { return d.write.Close() }

// arm makes the end of CRIU the end of these processes. Where CRIU has ended already it does nothing: they wait for CRIU's word then, in CRIU's own code.
func (d *deadman) arm(pids []int) error {
	path := "/proc/self/fd/" + strconv.Itoa(int(d.read.Fd()))
	for _, pid := range pids {
		// An open of its own: who is signalled is a matter of the open file, not of its descriptor.
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("watch criu for process %d: %w", pid, err)
		}
		d.armed = append(d.armed, os.NewFile(uintptr(fd), "criu watch of a process"))
		for _, c := range []struct{ cmd, arg int }{{unix.F_SETSIG, int(unix.SIGKILL)}, {unix.F_SETOWN, pid}, {unix.F_SETFL, unix.O_RDONLY | unix.O_NONBLOCK | unix.O_ASYNC}} {
			if _, err := unix.FcntlInt(uintptr(fd), c.cmd, c.arg); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("watch criu for process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// disarm lets the processes outlive CRIU. It may be called more than once. Closing the descriptors would not do: a child that is being started has them
// too, until it executes its program, and CRIU itself (guard), and the open file signals for as long.
func (d *deadman) disarm() (err error) {
	for _, f := range d.armed {
		if _, ferr := unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_RDONLY|unix.O_NONBLOCK); ferr != nil {
			err = errors.Join(err, fmt.Errorf("let go of a process: %w", ferr))
		}
		err = errors.Join(err, f.Close())
	}
	d.armed = nil
	return err
}

func (d *deadman) Close() error {
	err := d.disarm()
	for _, f := range []*os.File{d.read, d.write} {
		if cerr := f.Close(); !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}
