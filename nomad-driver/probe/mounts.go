package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// None of these probes attaches a mount anywhere: all of them work on detached ones, which go with their descriptors.

func checkMountAPI(context.Context, Options) (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open_tree: %w", err)
	}
	return "", unix.Close(fd)
}

func checkMountSetattr(context.Context, Options) (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	return "", nil
}

func checkTmpfs(context.Context, Options) (string, error) {
	fd, err := detached("tmpfs", map[string]string{"size": "1048576", "nr_inodes": "16"})
	if err != nil {
		return "", err
	}
	return "", unix.Close(fd)
}

func checkOverlay(_ context.Context, o Options) (string, error) {
	dir, remove, err := probeDir(o)
	if err != nil {
		return "", err
	}
	defer remove()
	fd, err := overlayOn(dir, filepath.Join(dir, "lower"))
	if err != nil {
		return "", err
	}
	return "", unix.Close(fd)
}

func checkIDMap(_ context.Context, o Options) (string, error) {
	dir, remove, err := probeDir(o)
	if err != nil {
		return "", err
	}
	defer remove()
	fd, err := idmapped(dir)
	if err != nil {
		return "", err
	}
	return "", unix.Close(fd)
}

func checkIDMapOverlay(_ context.Context, o Options) (string, error) {
	dir, remove, err := probeDir(o)
	if err != nil {
		return "", err
	}
	defer remove()
	lower := filepath.Join(dir, "lower")
	if err := os.Mkdir(lower, 0o700); err != nil {
		return "", err
	}
	tree, err := idmapped(lower)
	if err != nil {
		return "", err
	}
	defer unix.Close(tree)
	fd, err := overlayOn(dir, fmt.Sprintf("/proc/self/fd/%d", tree))
	if err != nil {
		return "", err
	}
	return "", unix.Close(fd)
}

// overlayOn mounts an overlay, detached, with its upper layer in dir, and checks that it can be written.
func overlayOn(dir, lower string) (int, error) {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work, filepath.Join(dir, "lower")} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return -1, err
		}
	}
	fd, err := detached("overlay", map[string]string{"lowerdir": lower, "upperdir": upper, "workdir": work})
	if err != nil {
		return -1, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("statfs: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		_ = unix.Close(fd)
		return -1, errors.New("overlay is read-only on this file system")
	}
	return fd, nil
}

// detached mounts a file system that is attached nowhere.
func detached(fsType string, options map[string]string) (int, error) {
	ctx, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fsType, err)
	}
	defer unix.Close(ctx)
	for k, v := range options {
		if err := unix.FsconfigSetString(ctx, k, v); err != nil {
			return -1, fmt.Errorf("%s option %s: %w%s", fsType, k, err, message(ctx))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("mount %s: %w%s", fsType, err, message(ctx))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", fsType, err)
	}
	return fd, nil
}

// message returns what the kernel has to say about the last error of a mount context.
func message(ctx int) string {
	b := make([]byte, 512)
	n, err := unix.Read(ctx, b)
	if err != nil || n < 3 {
		return ""
	}
	return ": " + strings.TrimSpace(string(b[2:n])) // "e " and the message
}

// idmapped returns a detached, idmapped mount of dir.
func idmapped(dir string) (int, error) {
	c, err := startChild(syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 65536}},
	})
	if err != nil {
		return -1, err
	}
	defer c.done()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", c.pid))
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("mount_setattr: %w", err)
	}
	return fd, nil
}
