package sandbox

import (
	"context"
	"errors"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

var errMaking = errors.New("in the making")

// InitBinary is the verified soulbox-init that sandboxes run from.
type InitBinary struct{}

// OpenInit opens and verifies the init binary at path: a regular, executable file that only root can write. The result is
// good for any number of sandboxes, also at the same time; Close it when no more are created.
func OpenInit(path string) (*InitBinary, error) { return nil, errMaking }

// Close lets go of the binary. Sandboxes that run from it go on.
func (b *InitBinary) Close() error { return nil }

// Sandbox is one sandbox, running or ended. Its methods may be called from any goroutine.
type Sandbox struct{}

// Create makes a sandbox and returns when its PID 1 serves and Boot.Main, if any, runs. On error nothing is left behind.
// An error that PID 1 reported has a *frame.ErrorBody in its chain, whose Code is one of guest.Code*.
func Create(ctx context.Context, c Config) (*Sandbox, error) { return nil, errMaking }

// Open finds a sandbox again that another process created. It also works for one that has ended, or was there before a
// reboot: Done is closed then. Release it as one that was created.
func Open(ref Ref, cgroups *cgroup.Manager) (*Sandbox, error) { return nil, errMaking }

// Sweep releases what a crash left behind: every directory of stateDir and runDir and every group whose name is a sandbox
// id that keep refuses. Processes in them are killed. It must not run while Create does, unless keep knows those ids.
func Sweep(ctx context.Context, stateDir, runDir string, cgroups *cgroup.Manager, keep func(api.SandboxID) bool) (removed []api.SandboxID, err error) {
	return nil, errMaking
}

// Ref returns what Open needs.
func (s *Sandbox) Ref() Ref { return Ref{} }

// Socket returns the path of its guest socket. (Guest() *guest.Client joins it once the client is merged.)
func (s *Sandbox) Socket() string { return "" }

// Steps returns how long each step of Create took, those of PID 1 included; nil after Open.
func (s *Sandbox) Steps() []guest.Step { return nil }

// Main returns the pid, inside, of Boot.Main; 0 where there is none or after Open (ask Guest().Info).
func (s *Sandbox) Main() guest.ProcessID { return 0 }

// Done is closed when PID 1 is gone and with it every process of the sandbox.
func (s *Sandbox) Done() <-chan struct{} { return nil }

// Exit says how it ended. Call it after Done.
func (s *Sandbox) Exit() Exit { return Exit{} }

// Kill ends every process at once and waits for Done, at most until ctx ends.
func (s *Sandbox) Kill(ctx context.Context) error { return errMaking }

// Release kills what still runs and removes the group and the directories. It may be repeated until it returns nil.
func (s *Sandbox) Release(ctx context.Context) error { return errMaking }

// Stats reads the counters of its group.
func (s *Sandbox) Stats() (cgroup.Stats, error) { return cgroup.Stats{}, errMaking }

// Freeze stops every process of it until Thaw.
func (s *Sandbox) Freeze(ctx context.Context) error { return errMaking }

// Thaw lets a frozen sandbox go on.
func (s *Sandbox) Thaw(ctx context.Context) error { return errMaking }
