package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// InitBinary is the verified soulbox-init that sandboxes run from. Its methods may be called from any goroutine.
type InitBinary struct {
	path string
	file *os.File // O_PATH
}

// OpenInit opens and verifies the init binary at path: a regular, executable file that only root can write. The result is
// good for any number of sandboxes, also at the same time; Close it when no more are created. A file that is put in its
// place later is not used.
func OpenInit(path string) (*InitBinary, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open init binary %s: %w", path, err)
	}
	b := &InitBinary{path: path, file: os.NewFile(uintptr(fd), path)}
	if err := b.verify(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *InitBinary) verify() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &st); err != nil {
		return fmt.Errorf("stat init binary %s: %w", b.path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("init binary %s is no regular file", b.path)
	case st.Uid != 0:
		return fmt.Errorf("init binary %s belongs to user id %d, not to root", b.path, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("init binary %s has mode %#o: group or others can write it", b.path, st.Mode&0o7777)
	case st.Mode&0o111 != 0o111:
		// PID 1 is root in a user namespace to which the file's owner is nobody.
		return fmt.Errorf("init binary %s has mode %#o: not everybody can execute it", b.path, st.Mode&0o7777)
	}
	return nil
}

// Close lets go of the binary. Sandboxes that run from it go on.
func (b *InitBinary) Close() error { return b.file.Close() }

// mount makes a detached, read-only mount of the binary alone. The caller closes it.
func (b *InitBinary) mount() (*os.File, error) {
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
