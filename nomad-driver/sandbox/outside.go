package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
)

// outside are the mounts of a restored sandbox that its dump does not hold. They are mounted nowhere, until CRIU has a mount namespace for them.
type outside struct {
	made    chan struct{} // closed when what follows is set
	program *os.File      // of PID 1's binary
	others  map[string]*os.File
	err     error
}

// outside begins to make them. close has to be called.
func (r *restorer) outside() *outside {
	o := &outside{made: make(chan struct{}), others: map[string]*os.File{}}
	go func() {
		defer close(o.made)
		if o.program, o.err = r.b.c.Init.mount(); o.err == nil {
			o.err = o.make(r.c.Dump.Mounts, r.b.c.Limits, r.b.c.IDBase)
		}
	}()
	return o
}

func (o *outside) make(mounts []checkpoint.Mount, limits Limits, base uint32) error {
	for _, m := range mounts {
		if o.others[m.Source] != nil {
			continue
		}
		var sizes guest.Boot
		setMemory(&sizes, limits)
		if m.Bytes > 0 {
			sizes.TmpBytes, sizes.ShmBytes = m.Bytes, m.Bytes // as it was, whatever a new one would have
		}
		var f *os.File
		var err error
		switch {
		case m.Memory():
			f, err = boot.NewMemory(m.Source, &sizes, base)
		case m.Device():
			f, err = boot.NewDevice(m.Source)
		default:
			continue
		}
		if err != nil {
			return err
		}
		o.others[m.Source] = f
	}
	return nil
}

func (o *outside) await() error {
	<-o.made
	return o.err
}

func (o *outside) close() (err error) {
	<-o.made
	if o.program != nil {
		err = o.program.Close()
	}
	for _, f := range o.others {
		err = errors.Join(err, f.Close())
	}
	return err
}

// attach puts them, in this thread's mount namespace, where processes with any ids find them. What PID 1 runs from is the
// copy, as in a sandbox that was never away: it shows no path of the host inside.
func (o *outside) attach() error {
	if err := unix.Mount("soulbox", restoreOutside, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size=4096,nr_inodes=64"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", restoreOutside, err)
	}
	if err := attachFile(o.program, initName); err != nil {
		return err
	}
	for word, f := range o.others {
		if !(checkpoint.Mount{Source: word}).Memory() {
			if err := attachFile(f, word); err != nil {
				return err
			}
			continue
		}
		at := filepath.Join(restoreOutside, word)
		if err := os.Mkdir(at, 0o711); err != nil {
			return err
		}
		if err := attach(f, at); err != nil {
			return err
		}
	}
	return nil
}

// attachFile attaches the mount of a single file in the folder of what comes from outside.
func attachFile(mount *os.File, name string) error {
	at := filepath.Join(restoreOutside, name)
	if err := os.WriteFile(at, nil, 0o444); err != nil {
		return err
	}
	return attach(mount, at)
}

// attach puts a detached mount at a path of this thread's mount namespace.
func attach(mount *os.File, path string) error {
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount at %s: %w", path, err)
	}
	return nil
}
