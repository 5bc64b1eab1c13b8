package pid1

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// level is one directory on removeAll's way down.
type level struct {
	name     string
	dev, ino uint64 // of the directory that holds it
}

// removeAll removes name of directory dir with everything below. It holds two descriptors and a name a level, however deep
// the tree is: a tree of a hundred thousand levels is no rarity among hostile ones. On the way up it makes sure that ".."
// still is where it came from, so that a directory that was moved meanwhile does not lead it astray. What does not exist is
// no error.
func removeAll(dir int, name string) error {
	done, err := removeOne(dir, name)
	if done || err != nil {
		return err
	}
	at, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(at) }()

	var path []level
	down := func(name string) error {
		l := level{name: name}
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		l.dev, l.ino = st.Dev, st.Ino
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		unix.Close(at)
		at = fd
		path = append(path, l)
		return nil
	}
	if err := down(name); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	for len(path) > 0 {
		sub, err := empty(at)
		if err != nil {
			return err
		}
		if sub != "" {
			if err := down(sub); err != nil && err != unix.ENOENT {
				return err
			}
			continue
		}
		l := path[len(path)-1]
		path = path[:len(path)-1]
		up, err := unix.Openat(at, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.Close(at)
		at = up
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		if st.Dev != l.dev || st.Ino != l.ino {
			return unix.EBUSY
		}
		if err := unix.Unlinkat(at, l.name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT && err != unix.ENOTEMPTY {
			return err
		}
	}
	// Something may have been put into the top while it was emptied.
	if err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// removeOne removes what is no directory, or an empty one.
func removeOne(dir int, name string) (done bool, err error) {
	switch err := unix.Unlinkat(dir, name, 0); err {
	case nil, unix.ENOENT:
		return true, nil
	case unix.EISDIR, unix.EPERM: // EPERM: a directory on file systems that follow POSIX to the letter
	default:
		return false, err
	}
	switch err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err {
	case nil, unix.ENOENT:
		return true, nil
	case unix.ENOTEMPTY, unix.EEXIST:
		return false, nil
	case unix.ENOTDIR:
		return false, unix.EPERM // it was a file that may not be removed
	default:
		return false, err
	}
}

// empty removes everything from the open directory but directories that are not empty, of which it returns the first that
// it meets; "" where none is left.
func empty(fd int) (sub string, err error) {
	for {
		// A listing from the start each time: what removing does to a listing under way is not defined.
		own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		d := os.NewFile(uintptr(own), ".")
		names, err := d.Readdirnames(1024)
		d.Close()
		if err != nil && err != io.EOF {
			return "", err
		}
		if len(names) == 0 {
			return "", nil
		}
		for _, name := range names {
			done, err := removeOne(fd, name)
			if err != nil {
				return "", err
			}
			if !done {
				return name, nil
			}
		}
	}
}
