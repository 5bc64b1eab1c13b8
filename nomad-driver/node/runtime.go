package node

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
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
	Guest() guestClient
	Steps() []guest.Step
	Main() guest.ProcessID
	Done() <-chan struct{}
	Exit() sandbox.Exit // after Done
	Kill(ctx context.Context) error
	Release(ctx context.Context) error // may be repeated until it returns nil
	Detach() error                     // lets go of it; it goes on, but Done does not close any more
	Stats() (cgroup.Stats, error)
	// Dial connects to a TCP port on the sandbox's loopback.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// DialPacket connects to a UDP port on the sandbox's loopback.
	DialPacket(ctx context.Context, port int) (net.Conn, error)
	// SetLimits changes limits; zero values leave what is set.
	SetLimits(l sandbox.Limits) error
	Usage() (sandbox.Usage, error) // never waits for the sandbox
	// DiskUsed returns what the sandbox has written and not removed, as far as the budget reaches; exact says whether it did.
	DiskUsed(b disk.Budget) (u disk.Usage, exact bool, err error)
}

// templates is the store of root file systems. Package store is the real one.
type templates interface {
	Lookup(nameOrDigest string) (nodeapi.Template, error)
	// Acquire finds a template and keeps it from being removed until the lease is released.
	Acquire(nameOrDigest string) (*lease, error)
	// MakeOwn returns once a tenant has its own copy of a template, on which AcquireOwn takes a lease; made tells that it had none.
	MakeOwn(ctx context.Context, tenant, nameOrDigest string) (made bool, err error)
	AcquireOwn(tenant, nameOrDigest string) (*lease, error)
	Owned() []nodeapi.OwnTemplate
	RemoveOwn(ctx context.Context, o nodeapi.OwnTemplate) error
	List() []nodeapi.Template
	Import(ctx context.Context, name string, r io.Reader, o store.ImportOptions) (nodeapi.Template, error)
	Export(ctx context.Context, nameOrDigest string, w io.Writer) error
	// Name gives a template that is there one more name.
	Name(name, digest string) (nodeapi.Template, error)
	Remove(ctx context.Context, nameOrDigest string) error
	// Prune removes trees older than age that have neither a name nor a lease.
	Prune(ctx context.Context, age time.Duration) ([]string, error)
	Close() error
}

// lease is the right to a template that a sandbox is made from.
type lease struct {
	nodeapi.Template
	Root    string // directory
	Release func()
}

// templateStore is templates on package store.
type templateStore struct{ *store.Store }

var _ templates = templateStore{}

func (s templateStore) Lookup(nameOrDigest string) (nodeapi.Template, error) {
	t, _, err := s.Store.Lookup(nameOrDigest)
	return nodeapi.Template(t), err
}

func (s templateStore) Acquire(nameOrDigest string) (*lease, error) {
	l, err := s.Store.Acquire(nameOrDigest)
	if err != nil {
		return nil, err
	}
	return &lease{Template: nodeapi.Template(l.Template), Root: l.Root, Release: l.Release}, nil
}

func (s templateStore) AcquireOwn(tenant, nameOrDigest string) (*lease, error) {
	l, err := s.Store.AcquireOwn(tenant, nameOrDigest)
	if err != nil {
		return nil, err
	}
	return &lease{Template: nodeapi.Template(l.Template), Root: l.Root, Release: l.Release}, nil
}

func (s templateStore) Owned() []nodeapi.OwnTemplate {
	var out []nodeapi.OwnTemplate
	for _, o := range s.Store.Owned() {
		out = append(out, nodeapi.OwnTemplate(o))
	}
	return out
}

func (s templateStore) RemoveOwn(ctx context.Context, o nodeapi.OwnTemplate) error {
	return s.Store.RemoveOwn(ctx, store.Own(o))
}

func (s templateStore) List() []nodeapi.Template {
	list := s.Store.List()
	out := make([]nodeapi.Template, len(list))
	for i, t := range list {
		out[i] = nodeapi.Template(t)
	}
	return out
}

func (s templateStore) Import(ctx context.Context, name string, r io.Reader, o store.ImportOptions) (nodeapi.Template, error) {
	t, err := s.Store.Import(ctx, name, r, o)
	return nodeapi.Template(t), err
}

func (s templateStore) Name(name, digest string) (nodeapi.Template, error) {
	t, err := s.Store.Name(name, digest)
	return nodeapi.Template(t), err
}

// sandboxes is the runtime on package sandbox.
type sandboxes struct {
	stateDir, runDir string
	cgroups          *cgroup.Tree
	init             *sandbox.InitBinary
	disk             disk.Limiter // nil: no disk limits
	engine           *checkpoint.Engine
	nodeOwned        bool // sandbox.Config.NodeOwned
}

var _ runtime = (*sandboxes)(nil)

func (s *sandboxes) Create(ctx context.Context, c sandbox.Config) (instance, error) {
	c.StateDir, c.RunDir, c.Cgroups, c.Init, c.Disk = s.stateDir, s.runDir, s.cgroups, s.init, s.disk
	c.NodeOwned = s.nodeOwned
	sb, err := sandbox.Create(ctx, c)
	if err != nil {
		return nil, err // not a typed nil
	}
	return realInstance{sb}, nil
}

func (s *sandboxes) Open(ref sandbox.Ref) (instance, error) {
	sb, err := sandbox.Open(ref, s.cgroups)
	if err != nil {
		return nil, err
	}
	return realInstance{sb}, nil
}

func (s *sandboxes) Sweep(ctx context.Context, keep func(api.SandboxID) bool) ([]api.SandboxID, error) {
	return sandbox.Sweep(ctx, s.stateDir, s.runDir, s.cgroups, keep)
}

// realInstance is instance on package sandbox.
type realInstance struct{ *sandbox.Sandbox }

func (r realInstance) Guest() guestClient { return r.Sandbox.Guest() }
