package boot

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// devices are the nodes of /dev, with the numbers that the host's must have.
var devices = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// maxTerminals bounds a sandbox's share of the machine's terminals (kernel.pty.max, 4096 by default).
const maxTerminals = "max=256"

// mountDev builds /dev: a small file system of its own with the devices of the host bound into it, since nobody in a user
// namespace can make a device node.
func (m *mounter) mountDev() error {
	dev, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode=755", "size=64k", "nr_inodes=256")
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	if err := m.place(dev, "dev"); err != nil {
		return err
	}
	for _, d := range devices {
		src, err := openDevice("/dev/"+d.name, unix.Mkdev(d.major, d.minor))
		if err != nil {
			return err
		}
		bound, err := bindDevice(src, dev, d.name)
		if err = errors.Join(err, unix.Close(src)); err != nil {
			return err
		}
		if d.name == "null" {
			m.null = bound
		} else if err := unix.Close(bound); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{
		{"pts/ptmx", "ptmx"}, {"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	} {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil {
			return fmt.Errorf("make link /dev/%s: %w", l[1], err)
		}
	}
	// With nodev nobody could open a terminal: devpts holds nothing but them.
	if err := mountIn(dev, "pts", "devpts", attrNoExec&^unix.MOUNT_ATTR_NODEV, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", maxTerminals); err != nil {
		return err
	}
	if err := mountIn(dev, "shm", "tmpfs", attrNoExec, "mode=1777", sizeOption(m.boot.ShmBytes), inodeOption(m.boot.TmpInodes)); err != nil {
		return err
	}
	return mountIn(dev, "mqueue", "mqueue", attrNoExec)
}

// openDevice opens a device node without following a link and makes sure that it is the one that is meant.
func openDevice(path string, rdev uint64) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s of the host: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("stat %s of the host: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != rdev {
		return -1, fmt.Errorf("%s of the host is not device %d:%d", path, unix.Major(rdev), unix.Minor(rdev))
	}
	return fd, nil
}

// bindDevice binds a device into dev and returns its mount there.
func bindDevice(src, dev int, name string) (int, error) {
	c, err := clone(src)
	if err != nil {
		return -1, fmt.Errorf("/dev/%s: %w", name, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if err = unix.MountSetattr(c, "", unix.AT_EMPTY_PATH, &attr); err == nil {
		err = touch(dev, name)
	}
	if err == nil {
		err = move(c, dev, name)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("bind /dev/%s: %w", name, err), unix.Close(c))
	}
	return c, nil
}

// mountIn makes a directory in dir, a file system that only PID 1 has seen, and mounts a new file system on it.
func mountIn(dir int, name, fsType string, attrs int, options ...string) error {
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	fs, err := newFS(fsType, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	return move(fs, dir, name)
}
