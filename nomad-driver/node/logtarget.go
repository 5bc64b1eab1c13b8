package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// targetRetry is how often a log target that is not there, not read or replaced is looked at again.
const targetRetry = time.Second

// blockStep is how long one attempt to write to a full FIFO takes before it is seen whether there is still a point.
const blockStep = 100 * time.Millisecond

// logTarget is one FIFO or regular file of the host that gets output. An empty path swallows everything.
type logTarget struct {
	path    string
	f       *os.File
	checked time.Time
}

func newLogTarget(path string) *logTarget { return &logTarget{path: path} }

// checkLogTargets refuses targets that are not there or of another kind, while the caller can still be told.
func checkLogTargets(l *nodeapi.LogTargets) error {
	if l == nil {
		return nil
	}
	for _, t := range []struct{ name, path string }{{"logs.stdout", l.Stdout}, {"logs.stderr", l.Stderr}} {
		if t.path == "" {
			continue
		}
		// It is only looked at: a FIFO that is opened and closed gives its reader, who may be there already, the end of file.
		fd, _, err := findTarget(t.path)
		if err != nil {
			return invalid("%s: %v", t.name, err)
		}
		_ = unix.Close(fd)
	}
	return nil
}

// openTarget opens a FIFO or a regular file for writing, and nothing else: no symlink in its place, no device. A FIFO is
// opened for both directions, so that what is in it survives a restart of its reader and writing never raises SIGPIPE.
func openTarget(path string) (*os.File, error) {
	fd, flags, err := findTarget(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	wfd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // the very file that was looked at
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(wfd), path), nil
}

// findTarget returns a descriptor that names the file without opening it, and the flags to open it with.
func findTarget(path string) (fd, flags int, err error) {
	fd, err = unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return fd, unix.O_RDWR, nil
	case unix.S_IFREG:
		return fd, unix.O_WRONLY | unix.O_APPEND, nil
	}
	_ = unix.Close(fd)
	return -1, 0, fmt.Errorf("%q is neither a FIFO nor a regular file", path)
}

// write writes all of p, waiting for a reader that is slow, gone or not there yet, until ctx ends.
func (t *logTarget) write(ctx context.Context, p []byte) error {
	if t.path == "" {
		return nil
	}
	for {
		err := t.reopen()
		if err == nil {
			var n int
			if err = t.f.SetWriteDeadline(time.Now().Add(blockStep)); errors.Is(err, os.ErrNoDeadline) {
				err = nil // a regular file does not wait
			}
			if err == nil {
				n, err = t.f.Write(p)
				p = p[n:]
			}
			if len(p) == 0 {
				return nil
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			continue
		}
		t.close()
		if !sleep(ctx, targetRetry) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// reopen opens the target where it is not open, or where another file has taken its name.
func (t *logTarget) reopen() error {
	if t.f != nil && time.Since(t.checked) < targetRetry {
		return nil
	}
	t.checked = time.Now()
	if t.f != nil {
		now, err := os.Lstat(t.path)
		open, ferr := t.f.Stat()
		if err == nil && ferr == nil && os.SameFile(now, open) {
			return nil
		}
		t.close()
	}
	f, err := openTarget(t.path)
	if err != nil {
		return err
	}
	t.f = f
	return nil
}

func (t *logTarget) close() {
	if t.f != nil {
		_ = t.f.Close()
		t.f = nil
	}
}

// sleep waits for d and reports whether ctx is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
