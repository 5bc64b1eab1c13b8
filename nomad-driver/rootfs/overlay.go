// Package rootfs makes the root file system of a sandbox from a template: the template's directory, idmapped, as the
// read-only lower layer of an overlay whose writable layer is the sandbox's own. Its other files keep the templates.
//
// It returns mounts as descriptors: nothing is ever visible in the host's mount namespace, with the one exception that
// NewOverlay names. It knows nothing of sandboxes' lives and of what is mounted inside.
package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Overlay describes one root file system.
type Overlay struct {
	Lower  *os.File // the template: a mount, as Idmap returns it
	Upper  *os.File // empty directory for what is written, owned by the sandbox's id 0
	Work   *os.File // empty directory on the same file system
	NoSUID bool     // setuid bits count for nothing
	// Attach is a directory on which Lower is mounted for the moment of the mount(2) on a kernel older than 6.15, which
	// takes no detached mount as a layer. Elsewhere it is not used.
	Attach string
}

// NewOverlay mounts o and returns it as a detached mount: private, nodev, writable. The caller closes it; what has moved
// it into a mount namespace keeps it. Writes are not synced to disk (volatile): a sandbox does not outlive its kernel.
func NewOverlay(o Overlay) (*os.File, error) {
	if !wantsAttached.Load() {
		f, err := mountOverlay(o, fdPath(o.Lower))
		if !errors.Is(err, unix.EINVAL) || o.Attach == "" {
			return f, err
		}
		// What the refused mount left in the work directory would make the next one be refused too.
		if err := clearDir(o.Work); err != nil {
			return nil, fmt.Errorf("clear overlay's work directory: %w", err)
		}
	}
	f, err := mountAttached(o)
	if err == nil {
		wantsAttached.Store(true)
	}
	return f, err
}

// wantsAttached is what was learnt of this kernel: it takes no detached mount as a layer.
var wantsAttached atomic.Bool

// mountAttached mounts the overlay while its lower layer is attached for a moment.
func mountAttached(o Overlay) (*os.File, error) {
	if err := unix.MoveMount(int(o.Lower.Fd()), "", unix.AT_FDCWD, o.Attach, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("attach lower layer to %s: %w", o.Attach, err)
	}
	f, err := mountOverlay(o, fdPath(o.Lower))
	if uerr := unix.Unmount(o.Attach, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
		err = errors.Join(err, fmt.Errorf("detach lower layer from %s: %w", o.Attach, uerr))
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return nil, err
	}
	return f, err
}

// clearDir empties an open directory of ours.
func clearDir(dir *os.File) error {
	entries, err := os.ReadDir(fdPath(dir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(fdPath(dir) + "/" + e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func mountOverlay(o Overlay, lower string) (_ *os.File, err error) {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open overlay file system: %w", err)
	}
	ctx := os.NewFile(uintptr(fsfd), "overlay")
	defer func() { err = errors.Join(err, ctx.Close()) }()
	for _, kv := range [][2]string{
		{"source", "soulbox"},
		{"lowerdir", lower},
		{"upperdir", fdPath(o.Upper)},
		{"workdir", fdPath(o.Work)},
	} {
		if err := unix.FsconfigSetString(fsfd, kv[0], kv[1]); err != nil {
			return nil, fmt.Errorf("set overlay option %s: %w%s", kv[0], err, contextLog(fsfd))
		}
	}
	if err := unix.FsconfigSetFlag(fsfd, "volatile"); err != nil {
		return nil, fmt.Errorf("set overlay option volatile (needs Linux 5.10): %w%s", err, contextLog(fsfd))
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("mount overlay: %w%s", err, contextLog(fsfd))
	}
	attrs := unix.MOUNT_ATTR_NODEV
	if o.NoSUID {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	f := os.NewFile(uintptr(mfd), "overlay root")
	// An overlay that cannot prepare its work directory does not fail: it becomes read-only without a word.
	var st unix.Statfs_t
	if err := unix.Fstatfs(mfd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat overlay: %w", err), f.Close())
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return nil, errors.Join(errors.New("mount overlay: it came out read-only: its work directory cannot be used"), f.Close())
	}
	return f, nil
}

// fdPath names an open file in a way that needs no escaping and cannot be swapped.
func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// contextLog returns what the kernel has to say about a failed mount, with a separator before it.
func contextLog(fsfd int) string {
	var lines []string
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if len(lines) == 0 {
		return ""
	}
	return ": " + strings.Join(lines, "; ")
}
