package boot

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// mounter builds the file system tree. Everything below the root is found from a descriptor of it, without following a
// link, so that a root file system in which /dev is a link to / is refused instead of obeyed.
type mounter struct {
	boot *guest.Boot
	root int // mount of the root file system
	init int // mount of the init binary
	// given are detached mounts, as boot.Given says
	given []int
	null  int // mount of /dev/null in the new /dev, to hide files behind
}

const (
	attrBase   = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	attrNoExec = attrBase | unix.MOUNT_ATTR_NOEXEC
)

// attachRoot puts the root mount where it can be pivoted to. From here on nothing propagates to or from the host.
func (m *mounter) attachRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if m.boot.MountPoint == "." {
		// Not the name: looking it up takes the right to search a directory that is the node's alone.
		return move(m.root, unix.AT_FDCWD, "")
	}
	return move(m.root, unix.AT_FDCWD, m.boot.MountPoint)
}

// pivot makes the root mount the root directory and lets go of the host's tree.
func (m *mounter) pivot() error {
	if err := unix.Fchdir(m.root); err != nil {
		return fmt.Errorf("enter new root: %w", err)
	}
	// With both the same, the old root ends up on top of the new one, and "." is it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach host root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter /: %w", err)
	}
	wd, err := unix.Getwd()
	if err != nil {
		return fmt.Errorf("get working directory: %w", err)
	}
	if wd != "/" {
		return fmt.Errorf("working directory is %q after the pivot, want \"/\"", wd)
	}
	return errors.Join(unix.Close(m.root), unix.Close(m.null))
}

// mountTmp mounts /tmp.
func (m *mounter) mountTmp() error {
	fs, err := newMemory(MemoryTmp, m.boot)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	return m.place(fs, "tmp")
}

// mountInit puts the binary that PID 1 runs from at guest.InitPath, in a file system that nobody can write.
func (m *mounter) mountInit() error {
	fs, err := newMemory(MemoryProgram, m.boot)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := m.place(fs, ".soulbox"); err != nil {
		return err
	}
	if err := move(m.init, fs, "init"); err != nil {
		return err
	}
	if err := readOnly(fs); err != nil {
		return err
	}
	return unix.Close(m.init)
}

// mountAt mounts a new file system on the directory of that name in the root.
func (m *mounter) mountAt(name, fsType string, attrs int, options ...string) error {
	fs, err := newFS(fsType, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	return m.place(fs, name)
}

// place moves the mount fs onto the directory of that name in the root, which it makes where it is missing.
func (m *mounter) place(fs int, name string) error {
	if err := unix.Mkdirat(m.root, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	dir, err := m.open(name, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return move(fs, dir, "")
}

// open opens a path of the root as an O_PATH descriptor. No part of it may be a link.
func (m *mounter) open(path string, flags uint64) (int, error) {
	fd, err := unix.Openat2(m.root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW | flags,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open /%s (it must be no link): %w", path, err)
	}
	return fd, nil
}

// newFS makes a detached mount of a new file system. An option is "key=value" or a flag.
func newFS(fsType string, attrs int, options ...string) (int, error) {
	ctx, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system %s: %w", fsType, err)
	}
	defer unix.Close(ctx)
	for _, o := range options {
		key, value, ok := cut(o)
		if ok {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, key)
		}
		if err != nil {
			return -1, fmt.Errorf("set %s option %s: %w", fsType, o, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("make file system %s: %w", fsType, err)
	}
	fs, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount file system %s: %w", fsType, err)
	}
	return fs, nil
}

func cut(o string) (key, value string, ok bool) {
	for i := range len(o) {
		if o[i] == '=' {
			return o[:i], o[i+1:], true
		}
	}
	return o, "", false
}

func sizeOption(n int64) string  { return "size=" + strconv.FormatInt(n, 10) }
func inodeOption(n int64) string { return "nr_inodes=" + strconv.FormatInt(n, 10) }

// move moves a detached mount onto name in dir, or onto dir itself where name is empty.
func move(mount, dir int, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(mount, "", dir, name, flags); err != nil {
		return fmt.Errorf("attach mount at %q: %w", name, err)
	}
	return nil
}

// clone makes a detached copy of the mount at fd, from fd on.
func clone(fd int) (int, error) {
	c, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone mount: %w", err)
	}
	return c, nil
}

func readOnly(mount int) error {
	if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make mount read-only: %w", err)
	}
	return nil
}

// touch makes an empty file in a file system that nobody else has seen. It opens none: a process that is forked at that moment would hold it open for writing, and
// the mount could not be made read-only.
func touch(dir int, name string) error {
	if err := unix.Mknodat(dir, name, unix.S_IFREG|0o444, 0); err != nil {
		return fmt.Errorf("make file %s: %w", name, err)
	}
	return nil
}
