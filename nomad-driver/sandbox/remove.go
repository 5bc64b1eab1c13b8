package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxDepth is how deep removal descends, which is also how many directories it holds open. What lies deeper is moved up
// first: code in a sandbox can nest directories without end, and neither stack nor descriptors may grow with it.
const maxDepth = 32

// removeTree removes dir and everything below it. Nothing may write there any more. Links are removed, never followed. A
// path that does not exist is no error.
func removeTree(dir string) error {
	parent, err := unix.Open(filepath.Dir(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	defer unix.Close(parent)
	r := &remover{}
	top, err := openForRemoval(parent, filepath.Base(dir))
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		err = unix.Unlinkat(parent, filepath.Base(dir), 0)
	case err == nil:
		r.top = top
		if err = errors.Join(r.empty(top, 0), top.Close()); err == nil {
			err = unix.Unlinkat(parent, filepath.Base(dir), unix.AT_REMOVEDIR)
		}
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

type remover struct {
	top   *os.File // the tree's root: what is too deep moves up to here
	moved int      // names given to what moved
}

func openForRemoval(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// empty removes what is in d, which is at that depth, until a look finds nothing: also what moved up meanwhile.
func (r *remover) empty(d *os.File, depth int) error {
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			if err := r.remove(d, e, depth); err != nil {
				return err
			}
		}
		if len(entries) == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}
		// Some file systems skip entries when others go while one reads.
		if _, err := d.Seek(0, 0); err != nil {
			return err
		}
	}
}

func (r *remover) remove(d *os.File, e os.DirEntry, depth int) error {
	fd, name := int(d.Fd()), e.Name()
	if !e.IsDir() {
		return ignoreGone(unix.Unlinkat(fd, name, 0))
	}
	// Most directories that are left are empty, and a removal costs less than a look.
	err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	if err == nil || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return ignoreGone(err)
	}
	if depth >= maxDepth {
		for {
			r.moved++
			err := unix.Renameat2(fd, name, int(r.top.Fd()), ".removed-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
			if !errors.Is(err, unix.EEXIST) {
				return ignoreGone(err)
			}
		}
	}
	sub, err := openForRemoval(fd, name)
	if err != nil {
		return ignoreGone(err)
	}
	err = errors.Join(r.empty(sub, depth+1), sub.Close())
	if err != nil {
		return err
	}
	return ignoreGone(unix.Unlinkat(fd, name, unix.AT_REMOVEDIR))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
