package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TmpfsLimiter mounts a tmpfs of the wanted size over the folder. What a sandbox writes is memory of its own cgroup.
type TmpfsLimiter struct{}

// Name is Tmpfs.
func (TmpfsLimiter) Name() string { return Tmpfs }

// Prepare mounts the tmpfs.
func (TmpfsLimiter) Prepare(dir string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	if mounted, err := isMountPoint(dir); err != nil {
		return err
	} else if mounted {
		return fmt.Errorf("disk limit of %s: set already", dir)
	}
	if err := unix.Mount("soulbox", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,"+tmpfsOptions(l)); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// Resize remounts with other limits.
func (t TmpfsLimiter) Resize(dir string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	if _, err := t.Usage(dir); err != nil {
		return err
	}
	err := unix.Mount("soulbox", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, tmpfsOptions(l))
	if errors.Is(err, unix.EINVAL) { // the kernel refuses a size below what is used with EINVAL
		return fmt.Errorf("disk limit of %s: %w", dir, ErrCannotShrink)
	}
	if err != nil {
		return fmt.Errorf("remount tmpfs on %s: %w", dir, err)
	}
	return nil
}

func tmpfsOptions(l Limits) string {
	return fmt.Sprintf("size=%d,nr_inodes=%d", l.Bytes, l.Inodes) // 0 is no limit
}

// Usage asks the mount.
func (TmpfsLimiter) Usage(dir string) (Usage, error) { return mountUsage(dir) }

// Release unmounts.
func (TmpfsLimiter) Release(dir string) error { return unmount(dir) }

// mountUsage reads the usage of a folder that is a file system of its own.
func mountUsage(dir string) (Usage, error) {
	mounted, err := isMountPoint(dir)
	if err != nil {
		return Usage{}, err
	}
	if !mounted {
		return Usage{}, fmt.Errorf("disk usage of %s: %w", dir, ErrNotPrepared)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, fmt.Errorf("disk usage of %s: %w", dir, err)
	}
	return Usage{
		Bytes:  int64(st.Blocks-st.Bfree) * st.Bsize,
		Inodes: int64(st.Files - st.Ffree),
		Limits: Limits{Bytes: int64(st.Blocks) * st.Bsize, Inodes: int64(st.Files)},
	}, nil
}

// isMountPoint reports whether dir is the root of a mount. A folder that is not there is none.
func isMountPoint(dir string) (bool, error) {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &stx)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func unmount(dir string) error {
	mounted, err := isMountPoint(dir)
	if err != nil || !mounted {
		return err
	}
	// Lazily: an overlay whose last process is being reaped may still hold it.
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
