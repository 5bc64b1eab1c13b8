package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// initName is the copy's name in its file system.
const initName = "init"

// InitBinary is the verified soulbox-init that sandboxes run from: a copy in a file system of its own, which nobody can write and
// which is mounted where only one thread of this process sees it. So a sandbox, which sees the mount that it runs from, learns no
// path and no disk of the host. Its methods may be called from any goroutine.
type InitBinary struct {
	path string
	file *os.File // of the copy, O_PATH

	asks  chan chan<- initMount // to the thread that has the mount
	stop  func()                // ends it
	done  chan struct{}         // closed by stop
	ended chan struct{}         // closed when the thread has no more work
}

type initMount struct {
	file *os.File
	err  error
}

// OpenInit verifies the init binary at path, a regular, executable file that only root can write, and copies it. The result is
// good for any number of sandboxes, also at the same time; Close it when no more are created. A file that is put in its
// place later is not used.
func OpenInit(path string) (*InitBinary, error) {
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open init binary: %w", err)
	}
	defer src.Close()
	size, err := verifyInit(src)
	if err != nil {
		return nil, err
	}
	b := &InitBinary{path: path, asks: make(chan chan<- initMount), done: make(chan struct{}), ended: make(chan struct{})}
	b.stop = sync.OnceFunc(func() { close(b.done) })
	ready := make(chan error, 1)
	go func() {
		defer close(b.ended)
		// With its thread its mount namespace ends, and the copy with it.
		osthread.ThrowAway(func() {
			err := b.shelter(src, size)
			ready <- err
			if err == nil {
				b.serve()
			}
		})
	}()
	if err := <-ready; err != nil {
		<-b.ended
		return nil, fmt.Errorf("copy init binary %s: %w", path, err)
	}
	return b, nil
}

func verifyInit(f *os.File) (size int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat init binary %s: %w", f.Name(), err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return 0, fmt.Errorf("init binary %s is no regular file", f.Name())
	case st.Uid != 0:
		return 0, fmt.Errorf("init binary %s belongs to user id %d, not to root", f.Name(), st.Uid)
	case st.Mode&0o022 != 0:
		return 0, fmt.Errorf("init binary %s has mode %#o: group or others can write it", f.Name(), st.Mode&0o7777)
	case st.Mode&0o111 != 0o111:
		// PID 1 is root in a user namespace to which the file's owner is nobody.
		return 0, fmt.Errorf("init binary %s has mode %#o: not everybody can execute it", f.Name(), st.Mode&0o7777)
	}
	return st.Size, nil
}

// shelter gives the calling thread a mount namespace that has the copy and, where the root can be left, nothing else. A mount can be
// cloned by those only who have it in their namespace; before Linux 6.15 a detached one by nobody.
func (b *InitBinary) shelter(src io.Reader, size int64) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts from the host: %w", err)
	}
	fs, err := initFS(size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fs)) }()
	if err := copyInit(fs, src, size); err != nil {
		return err
	}
	if err := sealFS(fs); err != nil {
		return err
	}
	// Everybody has a /proc to mount on; in this namespace nobody needs it.
	if err := unix.MoveMount(fs, "", unix.AT_FDCWD, "/proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the copy: %w", err)
	}
	fd, err := unix.Openat(fs, initName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b.file = os.NewFile(uintptr(fd), b.path)
	// So that this namespace holds on to no mount of the host. A host that still has the root of its boot cannot leave it.
	if unix.Fchdir(fs) == nil && unix.PivotRoot(".", ".") == nil {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return errors.Join(fmt.Errorf("let go of the host's mounts: %w", err), b.file.Close())
		}
	}
	return nil
}

func initFS(size int64) (int, error) {
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system tmpfs: %w", err)
	}
	defer unix.Close(ctx)
	for _, o := range [][2]string{
		{"source", "soulbox"}, {"mode", "0555"}, {"size", strconv.FormatInt(size, 10)}, {"nr_inodes", "2"},
	} {
		if err := unix.FsconfigSetString(ctx, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("set tmpfs option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	fs, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	return fs, nil
}

func copyInit(fs int, src io.Reader, size int64) error {
	fd, err := unix.Openat(fs, initName, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make its file: %w", err)
	}
	f := os.NewFile(uintptr(fd), initName)
	n, err := io.Copy(f, io.LimitReader(src, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("it changed meanwhile: %d bytes, there were %d", n, size)
	}
	return errors.Join(err, f.Chmod(0o555), f.Close())
}

// sealFS makes a file system read-only as a whole, whichever mount of it is looked at.
func sealFS(fs int) error {
	ctx, err := unix.Fspick(fs, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("pick tmpfs: %w", err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetFlag(ctx, "ro"); err != nil {
		return fmt.Errorf("set tmpfs option ro: %w", err)
	}
	if err := unix.FsconfigReconfigure(ctx); err != nil {
		return fmt.Errorf("make tmpfs read-only: %w", err)
	}
	return nil
}

// serve clones the mount for who asks, until Close.
func (b *InitBinary) serve() {
	for {
		select {
		case <-b.done:
			return
		case ask := <-b.asks:
			f, err := b.clone()
			ask <- initMount{f, err}
		}
	}
}

func (b *InitBinary) clone() (*os.File, error) {
	fd, err := unix.OpenTree(int(b.file.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone mount of init binary %s: %w", b.path, err)
	}
	f := os.NewFile(uintptr(fd), b.path)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("make mount of init binary %s read-only: %w", b.path, err), f.Close())
	}
	return f, nil
}

// Program is where this process, and what it starts, finds the copy while InitBinary is open.
func (b *InitBinary) Program() string {
	return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(b.file.Fd()))
}

// Close lets go of the binary. Sandboxes that run from it go on.
func (b *InitBinary) Close() error {
	b.stop()
	<-b.ended
	return b.file.Close()
}

// mount makes a detached, read-only mount of the binary alone. The caller closes it.
func (b *InitBinary) mount() (*os.File, error) {
	reply := make(chan initMount, 1)
	select {
	case b.asks <- reply:
		m := <-reply
		return m.file, m.err
	case <-b.done:
		return nil, fmt.Errorf("init binary %s: %w", b.path, os.ErrClosed)
	}
}
