package unpack

import (
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// The names by which a layer removes what lower layers brought.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// applyLayer unpacks one layer of an image over what is there.
func (w *writer) applyLayer(r io.Reader) error {
	w.layer = map[string]bool{}
	defer func() { w.layer = nil }()
	return w.tar(r)
}

// brought notes that the current layer has p, and with it all directories above.
func (w *writer) brought(p string) {
	if w.layer == nil {
		return
	}
	for p != "." && !w.layer[p] {
		w.layer[p] = true
		p = path.Dir(p)
	}
}

// whiteout does what the entry p of a layer says if it is a whiteout, and reports whether it was one. It touches only what
// lower layers brought, in whatever order the layer's entries come.
func (w *writer) whiteout(p string) (bool, error) {
	dir, base := path.Split(p)
	dir = path.Clean(dir)
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return false, nil
	}
	kept := func(q string) bool { return w.layer[q] }
	if base == whiteoutOpaque {
		return true, w.eraseBelow(dir, kept)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return true, nil // bookkeeping of a union file system
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return true, fmt.Errorf("%w: the whiteout %.200q removes nothing that has a name", ErrInvalid, p)
	}
	fd, err := w.ownDir(dir)
	if err != nil || fd < 0 {
		return true, err
	}
	defer unix.Close(fd)
	if _, err := w.dirs.remove(fd, name, path.Join(dir, name), kept); err != nil {
		return true, fmt.Errorf("whiteout %.200q: %w", p, err)
	}
	return true, nil
}

func (w *writer) eraseBelow(dir string, kept func(string) bool) error {
	fd, err := w.ownDir(dir)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	full := dir
	if full == "." {
		full = ""
	}
	if _, err := w.dirs.clear(fd, full, kept); err != nil {
		return fmt.Errorf("opaque directory %.200q: %w", dir, err)
	}
	return nil
}

// ownDir returns a descriptor that the caller closes, of a directory that is there or is made.
func (w *writer) ownDir(dir string) (int, error) {
	fd, err := w.dirs.dir(dir, true)
	if err != nil {
		return -1, err
	}
	w.brought(dir)
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}
