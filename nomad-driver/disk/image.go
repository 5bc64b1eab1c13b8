package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// LoopImage mounts an ext4 file system in a sparse image file beside the folder over it. The image takes disk space as it
// fills, and never more than its size.
type LoopImage struct{}

// DefaultImageBytes is the size of an image where only inodes are limited: an image has to have one.
const DefaultImageBytes = 10 << 30

// imageOf is the image's file: beside the folder, as the folder is its mount point.
func imageOf(dir string) string { return filepath.Clean(dir) + imageSuffix }

const imageSuffix = ".img"

// Name is Image.
func (*LoopImage) Name() string { return Image }

// Probe tells whether images can be made and mounted here.
func (*LoopImage) Probe(string) error {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return fmt.Errorf("mkfs.ext4 (package e2fsprogs): %w: %w", ErrUnsupported, err)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("loop devices (CONFIG_BLK_DEV_LOOP): %w: %w", ErrUnsupported, err)
	}
	return nil
}

// Prepare makes the image and mounts it.
func (i *LoopImage) Prepare(dir string, l Limits) (err error) {
	if err := l.validate(); err != nil {
		return err
	}
	if l.Bytes == 0 {
		l.Bytes = DefaultImageBytes
	}
	image := imageOf(dir)
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("disk limit of %s: set already", dir)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(image))
		}
	}()
	if err := f.Truncate(l.Bytes); err != nil {
		return fmt.Errorf("size of %s: %w", image, err)
	}
	if err := makeFileSystem(image, l); err != nil {
		return err
	}
	loop, err := attachLoop(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, loop.Close()) }() // the mount holds it; it is freed with the mount
	if err := unix.Mount(loop.Name(), dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV, "nodiscard"); err != nil {
		return fmt.Errorf("mount %s: %w", image, err)
	}
	// mkfs's own folder would be the first thing that a sandbox's upper layer sees.
	return os.RemoveAll(filepath.Join(dir, "lost+found"))
}

func makeFileSystem(image string, l Limits) error {
	// No journal: the content of a sandbox dies with the machine anyway. Lazy tables keep a new image small.
	args := []string{"-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"}
	if l.Inodes != 0 {
		args = append(args, "-N", strconv.FormatInt(l.Inodes, 10))
	}
	out, err := exec.Command("mkfs.ext4", append(args, image)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 of %s: %w: %s", image, err, out)
	}
	return nil
}

// attachLoop gives the image a loop device that is freed when nothing uses it any more.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	const tries = 64 // another process may take the free device between the two calls
	for range tries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		if err := errors.Join(err, dev.Close()); !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", image.Name(), dev.Name(), err)
		}
	}
	return nil, errors.New("find a free loop device: all are taken by others")
}

// Resize is not possible without a file system that both grows and shrinks while mounted.
func (i *LoopImage) Resize(dir string, l Limits) error {
	if err := l.validate(); err != nil {
		return err
	}
	if _, err := i.Usage(dir); err != nil {
		return err
	}
	return fmt.Errorf("disk limit of %s: an image has a fixed size: %w", dir, ErrUnsupported)
}

// Usage asks the mount.
func (i *LoopImage) Usage(dir string) (Usage, error) { return mountUsage(dir) }

// Release unmounts and deletes the image.
func (i *LoopImage) Release(dir string) error {
	err := unmount(dir)
	if rerr := os.Remove(imageOf(dir)); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
