package unpack

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// mountPoints are the directories of every root: a sandbox mounts something on each but /etc, in which it writes. A template in
// which one of them is a symbolic link would send those mounts and writes elsewhere.
var mountPoints = []struct {
	path string
	mode uint32
}{
	{"dev", 0o755}, {"etc", 0o755}, {"proc", 0o755}, {"run", 0o755}, {"sys", 0o755}, {"tmp", 0o1777}, {".soulbox", 0o755},
}

// initPoint is the file on which a sandbox's PID 1 is mounted.
const initPoint = "init"

// DefaultUser is the user that processes run as by default where a template has it and does not name another.
const DefaultUser = "user"

// finish makes the tree a template's root: mount points, the root's own owner and mode, times of directories. It returns the
// defaults.
func (w *writer) finish() (tree.Defaults, error) {
	empty, err := w.empty()
	if err != nil {
		return tree.Defaults{}, err
	}
	if empty {
		return tree.Defaults{}, fmt.Errorf("%w: the archive holds no files", ErrInvalid)
	}
	for _, m := range mountPoints {
		if err := w.mountPoint(m.path, m.mode); err != nil {
			return tree.Defaults{}, err
		}
	}
	if err := w.initPoint(); err != nil {
		return tree.Defaults{}, err
	}
	if err := own(int(w.dirs.root.Fd()), 0o755); err != nil {
		return tree.Defaults{}, err
	}
	if err := w.setTimes(); err != nil {
		return tree.Defaults{}, err
	}
	return w.defaultsOf()
}

func (w *writer) empty() (bool, error) {
	_, err := w.dirs.root.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

func (w *writer) mountPoint(p string, perm uint32) error {
	root := int(w.dirs.root.Fd())
	mode, err := lstat(root, p)
	if err != nil {
		return err
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil
	case 0:
		fd, err := w.dirs.mkdir(root, p)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fchmod(fd, perm)
	case unix.S_IFLNK:
		return fmt.Errorf("%w: /%s is a symbolic link; it has to be a directory", ErrInvalid, p)
	default:
		return fmt.Errorf("%w: /%s is a file; it has to be a directory", ErrInvalid, p)
	}
}

func (w *writer) initPoint() error {
	fd, err := w.dirs.dir(".soulbox", false)
	if err != nil {
		return err
	}
	mode, err := lstat(fd, initPoint)
	if err != nil {
		return err
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case 0:
	default:
		return fmt.Errorf("%w: /.soulbox/%s is not a regular file", ErrInvalid, initPoint)
	}
	f, err := unix.Openat(fd, initPoint, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o555)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	if err := own(f, 0o555); err != nil {
		return err
	}
	return setTime(f, epoch)
}

// setTimes sets the times of the directories that are left of those that the archive described.
func (w *writer) setTimes() error {
	for p, t := range w.mtimes {
		fd, err := w.dirs.openat2(p)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return err
		}
		err = setTime(fd, t)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) defaultsOf() (tree.Defaults, error) {
	var d tree.Defaults
	if w.defaults != nil {
		d = *w.defaults
	}
	if d.User != "" {
		return d, nil
	}
	has, err := w.hasUser(DefaultUser)
	if has {
		d.User = DefaultUser
	}
	return d, err
}

// hasUser reports whether /etc/passwd, where it is a file, knows the user.
func (w *writer) hasUser(name string) (bool, error) {
	f, err := tree.Open(w.dirs.root, "etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return false, err
	}
	const maxPasswd = 1 << 20
	lines := bufio.NewScanner(io.LimitReader(f, maxPasswd))
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), name+":") {
			return true, nil
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return false, fmt.Errorf("read /etc/passwd: %w", err)
	}
	return false, nil
}

func isFile(root, name string) bool {
	st, err := os.Lstat(root + "/" + name)
	return err == nil && st.Mode().IsRegular()
}
