package pid1

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	ptmxMajor, ptmxMinor = 5, 2

	defaultCols, defaultRows = 80, 24

	tiocgptpeer = 0x5441 // of asm-generic/ioctls.h, since Linux 4.13
)

// newTerminal allocates a terminal of the sandbox's own devpts, owned by uid. Its other side is never opened by a path,
// which a process of the sandbox could have exchanged: it comes from the terminal itself.
func newTerminal(size *frame.Size, uid int) (*pipes, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	p := &pipes{}
	fail := func(what string, err error) (*pipes, error) {
		unix.Close(master)
		p.closeChild()
		return nil, fmt.Errorf("%s of a new terminal: %w", what, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(master, &st); err != nil {
		return fail("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != ptmxMajor || unix.Minor(st.Rdev) != ptmxMinor {
		return fail("type", fmt.Errorf("/dev/ptmx is not the terminal multiplexer"))
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fail("unlock", err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), tiocgptpeer, uintptr(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC))
	if errno != 0 {
		return fail("other side", errno)
	}
	p.toFree = []int{int(slave)}
	p.child = [3]int{int(slave), int(slave), int(slave)}
	if size == nil {
		size = &frame.Size{Cols: defaultCols, Rows: defaultRows}
	}
	if err := setSize(master, *size); err != nil {
		return fail("size", err)
	}
	if err := unix.Fchown(int(slave), uid, -1); err != nil {
		return fail("owner", err)
	}
	if err := unix.Fchmod(int(slave), 0o620); err != nil {
		return fail("mode", err)
	}
	p.outs = []*os.File{pollable(master, "terminal")}
	p.in = p.outs[0]
	return p, nil
}

// setSize sets a terminal's size; its foreground processes get SIGWINCH.
func setSize(fd int, s frame.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
}
