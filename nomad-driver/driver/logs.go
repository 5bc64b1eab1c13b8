package driver

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// heldLogs holds a task's log pipes open. It never reads or writes them: the node does the writing. Nomad's log collector
// stops for good at the end of file, which it would see when the daemon is killed; with the plugin holding the pipes too, both
// would have to be killed at the same moment.
type heldLogs struct{ files []*os.File }

// holdLogs opens the FIFOs of t, which may be nil. Targets that are no FIFOs need no holding.
func holdLogs(t *nodeapi.LogTargets) (*heldLogs, error) {
	if t == nil {
		return nil, nil
	}
	h := &heldLogs{}
	for _, path := range []string{t.Stdout, t.Stderr} {
		if path == "" {
			continue
		}
		f, err := openFIFO(path)
		if err != nil {
			h.close()
			return nil, fmt.Errorf("log pipe: %w", err)
		}
		if f != nil {
			h.files = append(h.files, f)
		}
	}
	return h, nil
}

// openFIFO opens a FIFO for both directions, which does not wait for a peer; nil where path is something else. The folder
// belongs to the allocation, so another task of it may exchange the name: what is opened is what was looked at, and a link
// is not followed.
func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, nil
	}
	own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(own), path), nil
}

// close may be called on nil and more than once.
func (h *heldLogs) close() {
	if h == nil {
		return
	}
	for _, f := range h.files {
		_ = f.Close() // nothing was written to it
	}
	h.files = nil
}
