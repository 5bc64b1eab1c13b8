package rootfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MinKernelIdmap is the first Linux whose overlayfs takes an idmapped mount as a lower layer.
const MinKernelIdmap = "5.19"

// Idmap returns a detached, read-only clone of the mount at dir, whose ids are mapped as in the user namespace userns:
// a file of id 0 on disk belongs to that namespace's id 0. Mounts below dir are not part of it. The caller closes it.
func Idmap(dir string, userns int) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return nil, fmt.Errorf("clone mount of %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	attr := unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOATIME,
		Attr_clr:  unix.MOUNT_ATTR__ATIME,
		Userns_fd: uint64(userns),
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("map ids of %s (needs Linux %s and a file system that can): %w", dir, MinKernelIdmap, err), f.Close())
	}
	return f, nil
}
