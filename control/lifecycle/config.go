package lifecycle

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State is the part of the state that the service needs.
type State interface {
	// Leads reports whether this server believes to lead.
	Leads() bool
	Sandbox(id api.SandboxID) (state.Sandbox, error)
	Live() ([]state.Sandbox, error)
	List(f state.Filter, o state.Order, p state.Page) (state.List, error)
	SnapshotByID(id api.SnapshotID) (state.Snapshot, error)
	SnapshotNamed(tenant, name, tag string) (state.Snapshot, error)
	Snapshots(tenant string) ([]state.Snapshot, error)
	Tenant(id string) (state.Tenant, error)
	NodeMarks() ([]state.NodeMark, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Fleet is the part of the fleet that the service needs.
type Fleet interface {
	Await(id api.SandboxID) *fleet.Waiter
	AwaitOn(id api.SandboxID, node api.NodeID) *fleet.Waiter
	Find(id api.SandboxID) []fleet.Found
	Nodes() []fleet.Node
	Node(id api.NodeID) (fleet.Node, bool)
	Stale() time.Time
	Client(id api.NodeID) (*nodeapi.Client, error)
}

// Templates resolves the name of a template.
type Templates interface {
	// Resolve returns the template that name stands for and that at least one node has, or an *api.Error.
	Resolve(ctx context.Context, tenant, name string) (state.Template, error)
}

// Quota holds tenants to what they may use. It answers from memory; a refusal has an *api.Error in its chain.
type Quota interface {
	// Create counts a create against the tenant's rate.
	Create(tenant string) error
	// Reserve takes what a sandbox will use, until the tables count it, or Release gives it back. Release is harmless at any time.
	Reserve(tenant string, id api.SandboxID, ask state.Use) error
	Release(tenant string, id api.SandboxID)
}

// Config holds the service's seams and limits. Zero limits mean the defaults.
type Config struct {
	State     State            // required
	Fleet     Fleet            // required
	Placer    placement.Placer // required
	Templates Templates        // required
	Quota     Quota            // nil: only the tables refuse
	Pools     Pools            // nil: every create starts a sandbox of its own
	Secrets   Secrets          // nil: header rules go to nodes as they are
	Logger    hclog.Logger
	Now       func() time.Time
	NewID     func() api.SandboxID
	// Quiet returns when no request to a sandbox that leaves its node is under way at any server, or ctx ends; nil: nobody knows.
	Quiet func(ctx context.Context, id api.SandboxID)
	// Run names this run of the control service: another run knows by it which starting sandboxes nobody waits for.
	Run string // required

	DefaultTimeout time.Duration // of a sandbox; 5 min
	MaxLifetime    time.Duration // of a sandbox; 24 h
	StartTimeout   time.Duration // from placing to the node's report; 60 s
	CleanTimeout   time.Duration // for undoing a create that failed; 20 s

	DefaultCPUMillis int64 // 1000
	DefaultMemoryMB  int64 // 512
	DefaultDiskMB    int64 // 1024
	MaxCPUMillis     int64 // 64,000
	MaxMemoryMB      int64 // 256 Ki
	MaxDiskMB        int64 // 1 Mi

	// Crash is for tests of the crash points: where it returns an error, the service does nothing more, as if it had died.
	Crash func(point string) error
}

func (c *Config) check() error {
	if c.State == nil || c.Fleet == nil || c.Placer == nil || c.Templates == nil || c.Run == "" {
		return errors.New("lifecycle: state, fleet, placer, templates and run are required")
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = api.NewSandboxID
	}
	if c.Quiet == nil {
		c.Quiet = func(context.Context, api.SandboxID) {}
	}
	if c.Crash == nil {
		c.Crash = func(point string) error {
			failpoint.At("create." + point)
			return nil
		}
	}
	orDefault(&c.DefaultTimeout, 5*time.Minute)
	orDefault(&c.MaxLifetime, 24*time.Hour)
	orDefault(&c.StartTimeout, time.Minute)
	orDefault(&c.CleanTimeout, 20*time.Second)
	orDefault(&c.DefaultCPUMillis, 1000)
	orDefault(&c.DefaultMemoryMB, 512)
	orDefault(&c.DefaultDiskMB, 1024)
	orDefault(&c.MaxCPUMillis, 64_000)
	orDefault(&c.MaxMemoryMB, 256<<10)
	orDefault(&c.MaxDiskMB, 1<<20)
	return nil
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
