package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// receive reads the Boot frame and the descriptors beside its first byte.
func (w *World) receive() ([]int, error) {
	fd := int(w.conn.Fd())
	buf := make([]byte, 16<<10)
	oob := make([]byte, unix.CmsgSpace(4*(guest.BootFDCount+guest.MaxGiven)))
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read boot message: %w", err)
	}
	if n == 0 {
		return nil, errors.New("the node closed the boot socket")
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, errors.New("boot message: descriptors were truncated")
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return nil, err
	}
	r := frame.NewReader(io.MultiReader(bytes.NewReader(buf[:n]), w.conn))
	if err := r.ReadJSON(frame.Request, &w.Boot); err != nil {
		return nil, fmt.Errorf("boot message: %w", err)
	}
	if want := guest.BootFDCount + len(w.Boot.Given); len(fds) != want {
		return nil, fmt.Errorf("boot message: %d descriptors, want %d", len(fds), want)
	}
	w.step("boot.receive")
	return fds, check(&w.Boot)
}

// rights returns the descriptors of an SCM_RIGHTS message.
func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("boot message: %w", err)
	}
	var fds []int
	for i := range msgs {
		f, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return nil, fmt.Errorf("boot message: %w", err)
		}
		fds = append(fds, f...)
	}
	return fds, nil
}

// Profiles of Boot.Profile.
const (
	ProfileDefault = "default"
	ProfileStrict  = "strict"
)

func check(b *guest.Boot) error {
	switch {
	case b.Version < guest.MinProtocolVersion || b.Version > guest.ProtocolVersion:
		return fmt.Errorf("boot message: version %d, this init serves %d to %d", b.Version, guest.MinProtocolVersion, guest.ProtocolVersion)
	case b.Profile != ProfileDefault && b.Profile != ProfileStrict:
		return fmt.Errorf("boot message: unknown profile %q", b.Profile)
	case b.MountPoint == "":
		return errors.New("boot message: no mount point")
	case len(b.Seccomp) == 0 || len(b.Seccomp)%8 != 0 || len(b.Seccomp)/8 > unix.BPF_MAXINSNS:
		return fmt.Errorf("boot message: seccomp program of %d bytes", len(b.Seccomp))
	case b.TmpBytes <= 0 || b.ShmBytes <= 0 || b.TmpInodes <= 0:
		return errors.New("boot message: tmp_bytes, shm_bytes and tmp_inodes must be positive")
	}
	if err := checkFiles(b.Files); err != nil {
		return fmt.Errorf("boot message: %w", err)
	}
	return nil
}

// nativeEndian is the byte order of sock_filter records.
var nativeEndian = binary.NativeEndian
