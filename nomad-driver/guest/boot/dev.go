package boot

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// devices are the nodes of /dev, with the numbers that the host's must have.
var devices = []device{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

type device struct {
	name         string
	major, minor uint32
}

// maxTerminals bounds a sandbox's share of the machine's terminals (kernel.pty.max, 4096 by default).
const maxTerminals = "max=256"

// mountDev builds /dev: a small file system of its own with the devices of the host bound into it, since nobody in a user
// namespace can make a device node.
func (m *mounter) mountDev() error {
	dev, err := newMemory(MemoryDev, m.boot)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	if err := m.place(dev, "dev"); err != nil {
		return err
	}
	for _, d := range devices {
		bound, err := d.mount()
		if err != nil {
			return err
		}
		if err := move(bound, dev, d.name); err != nil {
			return errors.Join(err, unix.Close(bound))
		}
		if d.name == "null" {
			m.null = bound
		} else if err := unix.Close(bound); err != nil {
			return err
		}
	}
	// With nodev nobody could open a terminal: devpts holds nothing but them.
	if err := mountIn(dev, "pts", "devpts", attrNoExec&^unix.MOUNT_ATTR_NODEV, "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", maxTerminals); err != nil {
		return err
	}
	shm, err := newMemory(MemoryShm, m.boot)
	if err != nil {
		return err
	}
	if err := errors.Join(move(shm, dev, "shm"), unix.Close(shm)); err != nil {
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

// mount makes a detached mount of the host's device.
func (d device) mount() (int, error) {
	src, err := openDevice("/dev/"+d.name, unix.Mkdev(d.major, d.minor))
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	c, err := clone(src)
	if err != nil {
		return -1, fmt.Errorf("/dev/%s: %w", d.name, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if err := unix.MountSetattr(c, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, errors.Join(fmt.Errorf("bind /dev/%s: %w", d.name, err), unix.Close(c))
	}
	return c, nil
}

// NewDevice makes the detached mount of one of the devices of every sandbox, for one that comes back. The caller closes it.
func NewDevice(name string) (*os.File, error) {
	i := slices.IndexFunc(devices, func(d device) bool { return d.name == name })
	if i < 0 {
		return nil, fmt.Errorf("device %.40q is none that a sandbox has", name)
	}
	fd, err := devices[i].mount()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Devices returns the names in /dev of the devices of every sandbox.
func Devices() []string {
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.name
	}
	return names
}

// mountIn mounts a new file system on a directory in dir.
func mountIn(dir int, name, fsType string, attrs int, options ...string) error {
	fs, err := newFS(fsType, attrs, options...)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	return move(fs, dir, name)
}
