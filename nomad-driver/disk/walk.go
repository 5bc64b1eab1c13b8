package disk

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Budget bounds what a Walk may cost.
type Budget struct {
	Entries int           // files and folders looked at
	Time    time.Duration // of the walk
}

const (
	maxWalkDepth = 64  // folders within folders; one descriptor each
	walkChunk    = 256 // names read at a time
)

// Walk adds up what the files below dir take on the disk: for folders that no limiter counts. It looks at every file, so it
// is given a budget; exact is false where that, or the depth of a Walk, was not enough, and the usage is what it has seen. A
// file with several names counts once. It follows no link and leaves no file system, and dir may change meanwhile: it may
// belong to somebody hostile.
func Walk(dir string, b Budget) (u Usage, exact bool, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, false, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	w := walker{left: b.Entries, until: time.Now().Add(b.Time), links: map[uint64]bool{}, exact: true}
	f := os.NewFile(uintptr(fd), dir)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Usage{}, false, errors.Join(&os.PathError{Op: "stat", Path: dir, Err: err}, f.Close())
	}
	w.dev = st.Dev
	err = w.walk(f, 0)
	return w.usage, w.exact && err == nil, err
}

type walker struct {
	left  int
	until time.Time
	dev   uint64
	links map[uint64]bool // inodes with several names; no more than entries in the budget
	usage Usage
	exact bool
}

// walk adds up what is in f, and closes it.
func (w *walker) walk(f *os.File, depth int) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	for w.exact {
		names, err := f.Readdirnames(walkChunk)
		for _, name := range names {
			if w.left <= 0 || time.Now().After(w.until) {
				w.exact = false
				return nil
			}
			w.left--
			if err := w.entry(f, name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrNotExist) { // the end, or the folder was removed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(dir *os.File, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed meanwhile
	}
	if err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Dev != w.dev {
		return nil
	}
	folder := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !folder && st.Nlink > 1 {
		if w.links[st.Ino] {
			return nil
		}
		w.links[st.Ino] = true
	}
	w.usage.Bytes += st.Blocks * 512
	w.usage.Inodes++
	if !folder {
		return nil
	}
	if depth+1 >= maxWalkDepth {
		w.exact = false
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // another thing meanwhile
		return nil
	case err != nil:
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	return w.walk(os.NewFile(uintptr(fd), name), depth+1)
}
