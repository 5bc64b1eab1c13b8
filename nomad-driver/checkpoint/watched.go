package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A watch of inotify names what it watches by its inode. CRIU opens that by a handle, which an overlay does not let it, or finds it below paths that it is told. So what is watched
// in a sandbox's root is looked for here, where the kernel gives an inode the same number as stat(2) does.

// maxLooked bounds how many files are looked at for those that are watched, and maxDeep in how many folders one in the other: each holds a descriptor.
const (
	maxLooked = 1 << 18
	maxDeep   = 64
)

// watched returns the paths of what these processes watch with inotify in the file system of the root's root folder, the deepest first: CRIU looks through all below one path before it
// looks at the next one. What is not found is left out; CRIU says so. Nothing may run meanwhile.
func watched(root int, pids []int) ([]string, error) {
	top, err := unix.Open(fmt.Sprintf("/proc/%d/root", root), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root of process %d: %w", root, err)
	}
	f := &finder{wanted: map[uint64]bool{}}
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil {
		return nil, errors.Join(err, unix.Close(top))
	}
	f.dev = st.Dev
	for _, pid := range pids {
		if err := f.want(pid); err != nil && !gone(err) {
			return nil, errors.Join(fmt.Errorf("watches of process %d: %w", pid, err), unix.Close(top))
		}
	}
	if len(f.wanted) == 0 {
		return nil, unix.Close(top)
	}
	if f.meet(st.Ino, "/"); len(f.wanted) > 0 {
		err = f.walk(top, "/")
	} else {
		err = unix.Close(top)
	}
	slices.SortFunc(f.found, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")), cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	return f.found, err
}

// finder looks for inodes of one file system.
type finder struct {
	dev    uint64
	wanted map[uint64]bool
	found  []string
	looked int
}

// want notes what a process watches.
func (f *finder) want(pid int) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || target != "anon_inode:inotify" {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, e.Name()))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			var wd int
			var ino, dev uint64
			if _, err := fmt.Sscanf(line, "inotify wd:%x ino:%x sdev:%x", &wd, &ino, &dev); err != nil {
				continue
			}
			if unix.Mkdev(uint32(dev>>20), uint32(dev&(1<<20-1))) == f.dev { // the kernel's own way to write a device: linux/kdev_t.h
				f.wanted[ino] = true
			}
		}
	}
	return nil
}

// meet takes note of a path if it is wanted.
func (f *finder) meet(ino uint64, path string) {
	if f.wanted[ino] {
		delete(f.wanted, ino)
		f.found = append(f.found, path)
	}
}

// walk looks at what is in an open folder, which it closes. No link is followed, and no other file system entered.
func (f *finder) walk(fd int, path string) (err error) {
	dir := os.NewFile(uintptr(fd), path)
	defer func() { err = errors.Join(err, dir.Close()) }()
	var folders []string
	for {
		entries, err := dir.ReadDir(256)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if f.looked++; f.looked > maxLooked {
				return nil
			}
			var st unix.Stat_t
			if unix.Fstatat(fd, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != f.dev {
				continue
			}
			f.meet(st.Ino, filepath.Join(path, e.Name()))
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				folders = append(folders, e.Name())
			}
		}
	}
	for _, name := range folders {
		if len(f.wanted) == 0 || strings.Count(path, "/") > maxDeep {
			return nil
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", filepath.Join(path, name), err)
		}
		if err := f.walk(sub, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}
