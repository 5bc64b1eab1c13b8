package unpack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// dirs gives the directories below one root as descriptors. It never passes through a symbolic link or a mount.
type dirs struct {
	root *os.File
	// open holds descriptors of directories that were used last; archives come in the order of a walk.
	open map[string]int
	// made is called for each directory that is made without an entry of its own.
	made func(string)
}

const maxOpenDirs = 64

func openDirs(p string) (*dirs, error) {
	root, err := os.OpenFile(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &dirs{root: root, open: map[string]int{}, made: func(string) {}}, nil
}

func (d *dirs) close() error {
	d.forget()
	return d.root.Close()
}

// forget closes the cached descriptors. It is called before a directory goes away.
func (d *dirs) forget() {
	for p, fd := range d.open {
		unix.Close(fd)
		delete(d.open, p)
	}
}

// dir returns a descriptor of the directory at p, which stays d's own. Missing ones are made with mode 0755 where make is set.
func (d *dirs) dir(p string, make bool) (int, error) {
	if p == "" || p == "." {
		return int(d.root.Fd()), nil
	}
	if fd, ok := d.open[p]; ok {
		return fd, nil
	}
	fd, err := d.openat2(p)
	if errors.Is(err, unix.ENOENT) && make {
		parent, perr := d.dir(path.Dir(p), true)
		if perr != nil {
			return -1, perr
		}
		fd, err = d.mkdir(parent, p)
	}
	switch {
	case errors.Is(err, unix.ELOOP):
		return -1, fmt.Errorf("%w: %.200q is or passes through a symbolic link, but has entries below it", ErrInvalid, p)
	case errors.Is(err, unix.ENOTDIR):
		return -1, fmt.Errorf("%w: %.200q has entries below it, but is or passes through something that is no directory", ErrInvalid, p)
	case err != nil:
		return -1, err
	}
	if len(d.open) >= maxOpenDirs {
		d.forget()
	}
	d.open[p] = fd
	return fd, nil
}

// mkdir makes the directory p, which no entry of the archive described: root's, mode 0755, whatever the umask is and whatever
// the directory above would hand down.
func (d *dirs) mkdir(parent int, p string) (int, error) {
	if err := unix.Mkdirat(parent, path.Base(p), 0o755); err != nil {
		return -1, &fs.PathError{Op: "mkdir", Path: p, Err: err}
	}
	fd, err := d.openat2(p)
	if err != nil {
		return -1, err
	}
	if err := own(fd, 0o755); err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "mkdir", Path: p, Err: err}
	}
	d.made(p)
	return fd, nil
}

// own makes fd root's, with the given mode.
func own(fd int, mode uint32) error {
	if err := unix.Fchown(fd, 0, 0); err != nil {
		return err
	}
	return unix.Fchmod(fd, mode)
}

func (d *dirs) openat2(p string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		fd, err := unix.Openat2(int(d.root.Fd()), p, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open directory", Path: p, Err: err}
		}
		return fd, nil
	}
}

// parent returns the directory that holds p, made where it is missing, and p's own name.
func (d *dirs) parent(p string) (int, string, error) {
	fd, err := d.dir(path.Dir(p), true)
	return fd, path.Base(p), err
}

// lstat returns the type and mode of p; 0 where it does not exist.
func lstat(parent int, name string) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Mode, err
}

// remove removes name in the directory parent with all below it, except what keep says (by full path; keep may be nil). It
// reports whether name is gone.
func (d *dirs) remove(parent int, name, full string, keep func(string) bool) (bool, error) {
	mode, err := lstat(parent, name)
	if err != nil || mode == 0 {
		return mode == 0, err
	}
	if mode&unix.S_IFMT != unix.S_IFDIR {
		if keep != nil && keep(full) {
			return false, nil
		}
		return true, unix.Unlinkat(parent, name, 0)
	}
	if keep == nil {
		d.forget()
	}
	sub, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(sub)
	empty, err := d.clear(sub, full, keep)
	if err != nil || !empty || keep != nil && keep(full) {
		return false, err
	}
	d.forget()
	return true, unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

// clear removes what is in the directory fd, except what keep says, and reports whether it is empty then.
func (d *dirs) clear(fd int, full string, keep func(string) bool) (bool, error) {
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(dup), full)
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return false, err
	}
	empty := true
	for _, n := range names {
		gone, err := d.remove(fd, n, path.Join(full, n), keep)
		if err != nil {
			return false, fmt.Errorf("remove %.200q: %w", path.Join(full, n), err)
		}
		empty = empty && gone
	}
	return empty, nil
}
