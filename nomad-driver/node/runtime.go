package node

import (
	"context"
	"io"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// runtime makes and finds sandboxes. Package sandbox is the real one.
type runtime interface {
	// Create makes a sandbox and leaves nothing behind on error. It fills in what all sandboxes share (directories,
	// control groups, the init binary).
	Create(ctx context.Context, c sandbox.Config) (instance, error)
	// Open finds one that an earlier daemon made, also one that has ended.
	Open(ref sandbox.Ref) (instance, error)
	// Sweep removes, and kills, everything on the machine that belongs to no sandbox that keep wants.
	Sweep(ctx context.Context, keep func(api.SandboxID) bool) ([]api.SandboxID, error)
}

// instance is one sandbox, running or ended, as *sandbox.Sandbox is.
type instance interface {
	Ref() sandbox.Ref
	Socket() string
	Steps() []guest.Step
	Main() guest.ProcessID
	Done() <-chan struct{}
	Exit() sandbox.Exit // after Done
	Kill(ctx context.Context) error
	Release(ctx context.Context) error // may be repeated until it returns nil
	Stats() (cgroup.Stats, error)
}

// templates is the store of root file systems. Package store is the real one.
type templates interface {
	// Lookup finds a template by name or digest; an error with status 404 where there is none.
	Lookup(nameOrDigest string) (template, error)
	List() ([]nodeapi.Template, error)
	Import(ctx context.Context, name string, r io.Reader) (nodeapi.Template, error)
	Export(ctx context.Context, nameOrDigest string, w io.Writer) error
	// Remove removes a name; content that inUse knows stays.
	Remove(ctx context.Context, name string, inUse func(digest string) bool) error
}

// template is a root file system that a sandbox can be made from.
type template struct {
	nodeapi.Template
	Root string // directory
}

// sandboxes is the runtime on package sandbox.
type sandboxes struct {
	stateDir, runDir string
	cgroups          *cgroup.Manager
	init             *sandbox.InitBinary
}

var _ runtime = (*sandboxes)(nil)

func (s *sandboxes) Create(ctx context.Context, c sandbox.Config) (instance, error) {
	c.StateDir, c.RunDir, c.Cgroups, c.Init = s.stateDir, s.runDir, s.cgroups, s.init
	sb, err := sandbox.Create(ctx, c)
	if err != nil {
		return nil, err // not a typed nil
	}
	return sb, nil
}

func (s *sandboxes) Open(ref sandbox.Ref) (instance, error) {
	sb, err := sandbox.Open(ref, s.cgroups)
	if err != nil {
		return nil, err
	}
	return sb, nil
}

func (s *sandboxes) Sweep(ctx context.Context, keep func(api.SandboxID) bool) ([]api.SandboxID, error) {
	return sandbox.Sweep(ctx, s.stateDir, s.runDir, s.cgroups, keep)
}
