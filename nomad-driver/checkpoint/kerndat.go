package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
)

// CRIU asks the kernel at each start what it can do: it makes network namespaces and links, forks and traces children. That takes several times
// as long as to dump a small process, and the more the busier the machine is. It keeps what it has learned in a file, but only in a /run that is in
// memory, which many containers and machines do not have; whom it is killed at does not keep it again; and another CRIU of the machine writes over it.
// So each CRIU has a /run of its own, with what the first one has learned.

const (
	kerndatDir  = "/run"
	kerndatName = "criu.kdat"
	maxKerndat  = 64 << 10
)

// errUntracked tells why no memory is copied ahead.
var errUntracked = errors.New("the kernel does not track which pages are written to (CONFIG_MEM_SOFT_DIRTY)")

// errUnlearned tells why no memory is copied beside a dump.
var errUnlearned = errors.New("what criu knows of the kernel is not known")

// learn has CRIU ask the kernel, and keeps what it was told for those that come after it.
func (e *Engine) learn(ctx context.Context) error {
	var own *os.File
	e.ahead, e.beside = errUntracked, errUnlearned
	resp, err := e.call(ctx, place{thread: func() (err error) {
		if err := mountRun(nil); err != nil {
			return err
		}
		own, err = openDir(kerndatDir)
		return err
	}}, request{typ: rpc.CriuReqType_FEATURE_CHECK, features: &rpc.CriuFeatures{MemTrack: proto.Bool(true)}})
	if own != nil {
		defer own.Close() // of what is mounted nowhere any more
	}
	if err != nil {
		return err
	}
	if resp.GetFeatures().GetMemTrack() {
		e.ahead = nil
	}
	kerndat, err := readAt(own, kerndatName)
	if err != nil {
		return fmt.Errorf("what criu has learned of the kernel: %w", err)
	}
	e.kerndat, e.dumpKerndat = kerndat, kerndat
	if e.beside = nil; e.ahead != nil {
		if e.dumpKerndat, e.beside = e.forge(ctx); e.beside != nil {
			e.dumpKerndat = kerndat
		}
	}
	return nil
}

// mountRun gives this thread, which has a mount namespace of its own, a /run in memory, with what is known of the kernel.
func mountRun(kerndat []byte) error {
	if err := unix.Mount("soulbox", kerndatDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=1m,nr_inodes=64"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", kerndatDir, err)
	}
	if kerndat == nil {
		return nil
	}
	return os.WriteFile(filepath.Join(kerndatDir, kerndatName), kerndat, 0o600)
}

func readAt(dir *os.File, name string) (_ []byte, err error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, maxKerndat+1))
	if err == nil && (len(b) == 0 || len(b) > maxKerndat) {
		err = fmt.Errorf("%s has %d bytes", name, len(b))
	}
	return b, err
}
