package disk

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// WithinLimits runs f as one to whom disk quotas apply. The kernel lets whoever has CAP_SYS_RESOURCE write past them (ext4's
// reserve, and every limit of the generic quota code), also through a descriptor that was opened inside a sandbox: what a node
// writes on behalf of a sandbox has to go through here. f runs on one thread, and must start no goroutine that writes.
func WithinLimits(f func() error) error {
	runtime.LockOSThread()
	had, err := setResource(false)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("give up CAP_SYS_RESOURCE: %w", err)
	}
	err = f()
	if had {
		if _, rerr := setResource(true); rerr != nil {
			// The thread stays locked and ends with its goroutine: nobody else may find it without the capability.
			return errors.Join(err, fmt.Errorf("take CAP_SYS_RESOURCE back: %w", rerr))
		}
	}
	runtime.UnlockOSThread()
	return err
}

// setResource puts CAP_SYS_RESOURCE into the calling thread's effective set, or takes it out, and returns whether it was there.
func setResource(on bool) (had bool, err error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false, err
	}
	const bit = 1 << unix.CAP_SYS_RESOURCE
	had = data[0].Effective&bit != 0
	if had == on {
		return had, nil
	}
	if data[0].Effective &^= bit; on {
		data[0].Effective |= bit
	}
	return had, unix.Capset(&hdr, &data[0])
}
