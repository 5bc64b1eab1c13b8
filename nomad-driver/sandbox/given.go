package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Given is what a sandbox has of the host: devices that the machine's operator has set apart for it, and read-only what their drivers need beside
// them. No checkpoint holds a sandbox that has any.
type Given struct {
	Devices []Device
	Mounts  []Mount
}

// Device is a character device of the host.
type Device struct {
	Host   string // path of its node, no link
	Path   string // below /dev
	Access string // "r", "w" or "rw"
}

// Mount is a file or a folder of the host, read-only and without the mounts below it.
type Mount struct {
	Host string // no link
	Path string
}

// Any reports whether there is anything.
func (g Given) Any() bool { return len(g.Devices)+len(g.Mounts) > 0 }

// notGiven are folders that are PID 1's to build, with what is in them.
var notGiven = []string{"/dev", "/proc", "/sys", "/.soulbox", "/tmp"}

// Check says what cannot be given. The files themselves are looked at by Create.
func (g Given) Check() error {
	if n := len(g.Devices) + len(g.Mounts); n > guest.MaxGiven {
		return fmt.Errorf("%d devices and mounts, at most %d", n, guest.MaxGiven)
	}
	seen := map[string]bool{}
	for _, d := range g.Devices {
		if err := checkGiven(d.Host, d.Path, seen); err != nil {
			return fmt.Errorf("device %w", err)
		}
		if !strings.HasPrefix(d.Path, "/dev/") {
			return fmt.Errorf("device %s: it is to be %s, which is not below /dev", d.Host, d.Path)
		}
		if d.Access != "r" && d.Access != "w" && d.Access != "rw" {
			return fmt.Errorf("device %s: access %.10q is none of r, w and rw", d.Host, d.Access)
		}
	}
	for _, m := range g.Mounts {
		if err := checkGiven(m.Host, m.Path, seen); err != nil {
			return fmt.Errorf("mount %w", err)
		}
		for _, dir := range notGiven {
			if m.Path == dir || strings.HasPrefix(m.Path, dir+"/") {
				return fmt.Errorf("mount %s: it is to be %s, and nothing is mounted below %s", m.Host, m.Path, dir)
			}
		}
	}
	return nil
}

func checkGiven(host, inside string, seen map[string]bool) error {
	for _, p := range []string{host, inside} {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > 4095 || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%.80q at %.80q: both must be absolute, clean paths", host, inside)
		}
	}
	if seen[inside] {
		return fmt.Errorf("%s: %s is given twice", host, inside)
	}
	seen[inside] = true
	return nil
}

// given are the open mounts of what a sandbox under way is given.
type given struct {
	mounts []*os.File
	boot   []guest.Given
	own    []cgroup.Device
}

// open makes detached mounts of all of it, before anything of the sandbox is there.
func (g Given) open() (_ *given, err error) {
	out := &given{}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.close())
		}
	}()
	for _, d := range g.Devices {
		if err := out.device(d); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Host, err)
		}
	}
	for _, m := range g.Mounts {
		st, err := out.add(m.Host, m.Path, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = errors.New("it is neither a file nor a folder")
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Host, err)
		}
	}
	return out, nil
}

func (g *given) device(d Device) error {
	st, err := g.add(d.Host, d.Path, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return errors.New("it is no character device")
	}
	want := uint32(0) // of those who are nobody to it, as all in a sandbox are
	for access, bit := range map[string]uint32{"r": 0o4, "w": 0o2} {
		if strings.Contains(d.Access, access) {
			want |= bit
		}
	}
	if st.Mode&want != want {
		return fmt.Errorf("its mode is %#o, so that nobody in a sandbox could open it: %#o or a rule of udev that says so is needed", st.Mode&0o777, st.Mode&0o777|want)
	}
	g.own = append(g.own, cgroup.Device{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Access: d.Access})
	return nil
}

// add clones the mount of one thing, by a descriptor: what is looked at is what is mounted.
func (g *given) add(host, inside string, attrs uint64) (unix.Stat_t, error) {
	var st unix.Stat_t
	at, err := unix.Open(host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, fmt.Errorf("open: %w", err)
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return st, fmt.Errorf("clone its mount: %w", err)
	}
	g.mounts = append(g.mounts, os.NewFile(uintptr(fd), host))
	if err := unix.Fstat(fd, &st); err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	// Private: what the host mounts there later is not the sandbox's.
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE}); err != nil {
		return st, fmt.Errorf("set the attributes of its mount: %w", err)
	}
	g.boot = append(g.boot, guest.Given{Path: inside, Dir: st.Mode&unix.S_IFMT == unix.S_IFDIR})
	return st, nil
}

func (g *given) close() error {
	var errs []error
	for _, f := range g.mounts {
		errs = append(errs, f.Close())
	}
	g.mounts = nil
	return errors.Join(errs...)
}
