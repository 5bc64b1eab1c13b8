package boot

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// mountProc mounts a /proc of the sandbox's own pid namespace. In the strict profile it holds nothing but processes, and
// only one's own.
func (m *mounter) mountProc() error {
	var options []string
	if m.boot.Profile == ProfileStrict {
		options = []string{"hidepid=invisible", "subset=pid"}
	}
	return m.mountAt("proc", "proc", attrNoExec, options...)
}

// hide masks and write-protects what the profile names. A path that this kernel does not have needs no mask.
func (m *mounter) hide() error {
	for _, path := range m.boot.ReadonlyPath {
		if err := m.protect(strings.TrimPrefix(path, "/")); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("write-protect %s: %w", path, err)
		}
	}
	empty := -1
	for _, path := range m.boot.MaskPaths {
		if err := m.mask(strings.TrimPrefix(path, "/"), &empty); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	if empty >= 0 {
		return unix.Close(empty)
	}
	return nil
}

// protect mounts the file or directory at path onto itself, read-only.
func (m *mounter) protect(path string) error {
	at, err := m.open(path, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	c, err := clone(at)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := unix.MountSetattr(c, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | attrNoExec}); err != nil {
		return fmt.Errorf("make mount read-only: %w", err)
	}
	return move(c, at, "")
}

// mask hides a file behind /dev/null and a directory behind an empty one. *empty is that directory's mount, once made.
func (m *mounter) mask(path string, empty *int) error {
	at, err := m.open(path, 0)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c, err := clone(m.null)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		return move(c, at, "")
	}
	if *empty < 0 {
		// Attached mounts can be cloned on every kernel, detached ones on new ones only: the first is moved into place.
		if *empty, err = newMemory(MemoryNothing, m.boot); err != nil {
			return err
		}
		return move(*empty, at, "")
	}
	c, err := clone(*empty)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	return move(c, at, "")
}
