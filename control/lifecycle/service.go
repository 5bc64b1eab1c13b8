// Package lifecycle makes, finds and ends sandboxes: every change of one passes through it or through package reconcile.
//
// It owns the order of steps of a change: intent into Raft first, then the placement and the node, then the fact into
// Raft. It never speaks HTTP to clients, never asks a scheduler whether a sandbox runs (the node's own report counts), and
// never decides who may do what beyond the tenant that a sandbox belongs to.
package lifecycle

import (
	"context"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// API is what the service offers to an HTTP server. *Service implements it. Every error that a client may see is an
// *api.Error somewhere in its chain. A sandbox of another tenant is not found.
type API interface {
	// Create makes a sandbox and returns once its node reports it running, with the timed steps of the way.
	Create(ctx context.Context, p CreateParams) (state.Sandbox, []guest.Step, error)
	// Get returns a sandbox, ended ones too while they are kept.
	Get(ctx context.Context, tenant string, id api.SandboxID) (state.Sandbox, error)
	List(ctx context.Context, f state.Filter, o state.Order, p state.Page) (state.List, error)
	// Delete ends a sandbox and returns once it has ended. An ended one is not found.
	Delete(ctx context.Context, tenant string, id api.SandboxID) error
	// SetTimeout moves the deadline to now plus d, earlier or later.
	SetTimeout(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error)
	// Refresh moves the deadline to now plus d, never to an earlier time.
	Refresh(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error)
	// Connect is Refresh for a client that comes back. A paused sandbox is resumed, for d, as Resume does; resumed tells.
	Connect(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep Keep) (sb state.Sandbox, resumed bool, err error)
	// Pause stops a running sandbox and keeps what keep says of it. One that does not run is a conflict.
	Pause(ctx context.Context, tenant string, id api.SandboxID, keep Keep) (state.Sandbox, error)
	// Resume lets a paused sandbox go on for d: where it was, or, with KeepFiles or where no more was kept, booted anew. One that is
	// not paused is a conflict.
	Resume(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep Keep) (state.Sandbox, error)
	// Wake resumes a paused sandbox for traffic, for as long as it was last given to run, where it was made to do so. One that runs
	// is returned as it is. Many calls at a time resume it once.
	Wake(ctx context.Context, id api.SandboxID) (state.Sandbox, error)
	// TakeSnapshot makes a snapshot of a running or paused sandbox, which goes on as it was.
	TakeSnapshot(ctx context.Context, p SnapshotParams) (state.Snapshot, error)
	// Snapshot returns a snapshot by its id, its name or "name:tag".
	Snapshot(ctx context.Context, tenant, ref string) (state.Snapshot, error)
	// Snapshots returns those of a tenant, the newest first.
	Snapshots(ctx context.Context, tenant string) ([]state.Snapshot, error)
	// DeleteSnapshot removes a snapshot and its data. One that sandboxes were made from which have not ended is a conflict,
	// unless force.
	DeleteSnapshot(ctx context.Context, tenant, ref string, force bool) error
	// Fork makes count copies of a sandbox, which goes on as it was. Each copy has an error of its own.
	Fork(ctx context.Context, caller auth.Identity, id api.SandboxID, count int, d time.Duration) ([]Forked, error)
	// SetNetwork replaces the network settings of a running sandbox: the lists, rules and proxy, and whether it may reach the internet.
	SetNetwork(ctx context.Context, tenant string, id api.SandboxID, n api.NetworkConfig, internet *bool) (state.Sandbox, error)
	// SetNetworkPolicy replaces the lists of a running sandbox and whether it may reach the internet, and leaves rules and proxy.
	SetNetworkPolicy(ctx context.Context, tenant string, id api.SandboxID, p api.NetworkPolicy) error
	// NetworkWith returns what a node would be told where a sandbox's own policy were p: that of the layers around it, and p.
	NetworkWith(tenant string, id api.SandboxID, p api.NetworkPolicy) (nodeapi.Network, error)
	// TenantNetwork brings the recorded network policy of a tenant to its running sandboxes. Nodes that do not answer get it later.
	TenantNetwork(ctx context.Context, tenant string) error
	// SecretChanged brings a secret that was made, changed or deleted to the running sandboxes of its tenant whose header rules name it. Nodes that do
	// not answer get it later.
	SecretChanged(ctx context.Context, tenant, name string) error
	// ShapeNetwork changes how a running sandbox's link carries packets.
	ShapeNetwork(ctx context.Context, tenant string, id api.SandboxID, shape api.NetworkShape) error
	// JoinNetworks replaces the private networks that a running sandbox is in.
	JoinNetworks(ctx context.Context, tenant string, id api.SandboxID, list []api.NetworkMember) error
	// Published returns the ports of a sandbox that its node listens for, and those that it should.
	Published(ctx context.Context, tenant string, id api.SandboxID) ([]api.PublishedPort, error)
	// SetPublished replaces which ports of a running sandbox its node listens for, also where it moves.
	SetPublished(ctx context.Context, tenant string, id api.SandboxID, want []api.PublishedPort) ([]api.PublishedPort, error)
	// Elsewhere returns the members of a sandbox's private networks that are on other nodes, where it does not reach them.
	Elsewhere(tenant string, id api.SandboxID) ([]api.NetworkMember, error)
	// SetLimits changes limits of a running sandbox. Zero fields stay as they are.
	SetLimits(ctx context.Context, tenant string, id api.SandboxID, c LimitChange) (state.Sandbox, error)
	// NodeOf returns the node that a sandbox is, or was, on. One that never had a node is not running.
	NodeOf(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
	Health(ctx context.Context, tenant string, id api.SandboxID) (Health, error)
	// NodeFor returns the client of the node that runs the sandbox, for exec, files and events. A paused one that resumes by itself
	// is resumed first.
	NodeFor(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
}

// Service implements API on the seams of its Config. It is safe for concurrent use and has no goroutines of its own.
type Service struct {
	cfg   Config
	locks locks
}

var _ API = (*Service)(nil)

// New returns a service.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Service{cfg: cfg}, nil
}

// MaxLifetime returns the longest time that a sandbox may exist.
func (s *Service) MaxLifetime() time.Duration { return s.cfg.MaxLifetime }

// sandbox returns a tenant's sandbox. That of another tenant is not found.
func (s *Service) sandbox(tenant string, id api.SandboxID) (state.Sandbox, error) {
	sb, err := s.cfg.State.Sandbox(id)
	if err != nil {
		return state.Sandbox{}, stateError(id, err)
	}
	if sb.Tenant != tenant {
		return state.Sandbox{}, notFound(id)
	}
	return sb, nil
}

// live is sandbox for changes: one that has ended is not found either.
func (s *Service) live(tenant string, id api.SandboxID) (state.Sandbox, error) {
	sb, err := s.sandbox(tenant, id)
	if err == nil && sb.State.Ended() {
		return state.Sandbox{}, notFound(id)
	}
	return sb, err
}
