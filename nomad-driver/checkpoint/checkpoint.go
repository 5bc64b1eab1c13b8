// Package checkpoint takes the processes of one sandbox to disk and brings them back, with CRIU.
//
// It owns the conversation with CRIU, what a dump and a restore are asked for, the look for what cannot be checkpointed before
// anything stops, and the check of images before CRIU reads them. It knows nothing of sandboxes' lives, of records and of where
// images are kept: package sandbox gives it a process tree, a frozen group and folders. Package chunk beside it stores snapshots.
package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/checkpoint-restore/go-criu/v7/rpc"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
)

// MinVersion is the oldest CRIU that works: older ones wait for ever at the end of a dump on Linux 6.18, and before 4.1 cannot restore the vDSO of kernels from 6.13 on. major*10000+minor*100+sublevel.
const MinVersion = 40200

// ErrUnsupported is in the chain of an error that says that this machine has no CRIU that works.
var ErrUnsupported = errors.New("checkpoints are not supported on this machine")

// Engine is a CRIU that was found to work. Its methods may be called from any goroutine.
type Engine struct {
	program program
	version int
	kerndat []byte // what CRIU knows of the kernel; nil: it asks each time
	slow    error  // why so
	lazy    error  // why memory comes back at once; nil: it need not
	ahead   error  // why no memory can be copied before a dump; nil: it can
	beside  error  // why none can be copied beside a dump; nil: it can
	// dumpKerndat is what a CRIU that is to dump knows of the kernel: where beside is nil, more than is so.
	dumpKerndat []byte
	room        atomic.Int64 // bytes of all rooms
	spare       spare
}

// Open looks for CRIU: at path, or where that is empty on PATH.
func Open(ctx context.Context, path string) (*Engine, error) {
	if path == "" {
		path = "criu"
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	e := &Engine{program: program{path: found}, lazy: pager.Probe()}
	var direct program
	resp, err := e.call(ctx, place{started: func(p *os.Process) error {
		direct = waiting(ctx, p.Pid)
		return nil
	}}, request{typ: rpc.CriuReqType_VERSION})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnsupported, found, err)
	}
	v := resp.GetVersion()
	e.version = int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber())*100 + int(v.GetSublevel())
	if e.version < MinVersion {
		return nil, fmt.Errorf("%w: %s is version %s, at least %s is needed", ErrUnsupported, found, e.Version(), versionText(MinVersion))
	}
	if direct.path != "" {
		// Where it works, as it does but in the midst of an update, no wrapper is started again and again.
		d := &Engine{program: direct, version: e.version, lazy: e.lazy}
		if d.learn(ctx) == nil {
			return d, nil
		}
	}
	e.slow = e.learn(ctx)
	return e, nil
}

// Slow says why CRIU has to find out at each start what the kernel can do; nil: it has not.
func (e *Engine) Slow() error { return e.slow }

// Version returns CRIU's version, as "4.1.1".
func (e *Engine) Version() string { return versionText(e.version) }

func versionText(v int) string { return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100) }

// openDir opens a folder for CRIU, which finds it through this process's descriptors.
func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
