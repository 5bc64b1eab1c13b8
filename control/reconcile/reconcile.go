// Package reconcile joins what shall exist (package state) with what does (package fleet): it adopts or destroys what
// disagrees, and forgets what ended long ago.
//
// It owns the decisions about disagreement, all of them in one function, and their pace. It never creates a sandbox. It
// runs on the leader only.
package reconcile

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State is the part of the state that the reconciler needs.
type State interface {
	Sandbox(id api.SandboxID) (state.Sandbox, error)
	Live() ([]state.Sandbox, error)
	Slot(id api.SandboxID) (state.Slot, error)
	Snapshots(tenant string) ([]state.Snapshot, error)
	Tenant(id string) (state.Tenant, error)
	Tenants() ([]state.Tenant, error)
	Purgeable(t time.Time, keep, limit int) ([]api.SandboxID, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Fleet is the part of the fleet that the reconciler needs.
type Fleet interface {
	Nodes() []fleet.Node
	Find(id api.SandboxID) []fleet.Found
	Ended(node api.NodeID, id api.SandboxID) (nodeapi.Sandbox, bool)
	IDs() []api.SandboxID
	Client(id api.NodeID) (*nodeapi.Client, error)
	Stale() time.Time
}

// Config holds the reconciler's seams and pace. Zero values mean the defaults.
type Config struct {
	State  State            // required
	Fleet  Fleet            // required
	Placer placement.Placer // required
	Run    string           // required: this run of the control service, as lifecycle's
	// Secrets is lifecycle's.
	Secrets lifecycle.Secrets
	Logger  hclog.Logger
	Now     func() time.Time
	Record  func(audit.Event) // is told what was done; it returns at once. nil: nobody

	Interval     time.Duration // between full passes; 5 s
	OrphanGrace  time.Duration // until a sandbox that no record knows is destroyed; 10 s
	StopGrace    time.Duration // that a delete call has to finish by itself; 5 s
	HoldGrace    time.Duration // of what a change of another run of the service holds; 30 s
	LostAfter    time.Duration // that a node is gone until its sandboxes are lost; 30 s
	StartTimeout time.Duration // that a create call has until its sandbox runs; 80 s: lifecycle's timeout and its cleaning
	CallTimeout  time.Duration // of one call to a placer or a node; 10 s
	// SnapshotTimeout is how long a call of another service may be making a snapshot: 45 min, the time of a dump and of a store.
	SnapshotTimeout time.Duration

	Retention  time.Duration // that ended sandboxes are kept; 24 h
	MaxEnded   int           // ended sandboxes that are kept at most; 10,000
	PurgeEvery time.Duration // 1 min
	// CollectEvery is how often snapshot stores are rid of what no snapshot needs; 20 min. The first time is as long after the begin.
	CollectEvery time.Duration
}

func (c *Config) check() error {
	if c.State == nil || c.Fleet == nil || c.Placer == nil || c.Run == "" {
		return errors.New("reconcile: state, fleet, placer and run are required")
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Record == nil {
		c.Record = func(audit.Event) {}
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Interval, 5*time.Second)
	set(&c.OrphanGrace, 10*time.Second)
	set(&c.StopGrace, 5*time.Second)
	set(&c.HoldGrace, 30*time.Second)
	set(&c.LostAfter, 30*time.Second)
	set(&c.StartTimeout, 80*time.Second)
	set(&c.CallTimeout, 10*time.Second)
	set(&c.SnapshotTimeout, 45*time.Minute)
	set(&c.Retention, 24*time.Hour)
	set(&c.PurgeEvery, time.Minute)
	set(&c.CollectEvery, 20*time.Minute)
	if c.MaxEnded == 0 {
		c.MaxEnded = 10_000
	}
	return nil
}

// Reconciler runs passes while its Run does. Mark is safe for concurrent use; everything else belongs to Run.
type Reconciler struct {
	cfg Config
	log hclog.Logger

	mu    sync.Mutex
	dirty map[api.SandboxID]struct{}
	wake  chan struct{} // holds one word while dirty is not empty

	marks marks
}

// New returns a reconciler that does nothing until Run.
func New(cfg Config) (*Reconciler, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Reconciler{
		cfg: cfg, log: cfg.Logger,
		dirty: map[api.SandboxID]struct{}{}, wake: make(chan struct{}, 1), marks: marks{},
	}, nil
}

// Mark says that something about a sandbox changed: it is looked at soon. It returns at once.
func (r *Reconciler) Mark(id api.SandboxID) {
	r.mu.Lock()
	r.dirty[id] = struct{}{}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Reconciler) takeDirty() []api.SandboxID {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]api.SandboxID, 0, len(r.dirty))
	for id := range r.dirty {
		ids = append(ids, id)
	}
	clear(r.dirty)
	return ids
}

// Run reconciles until ctx ends. One run at a time.
func (r *Reconciler) Run(ctx context.Context) {
	r.marks = marks{}
	full := time.NewTicker(r.cfg.Interval)
	defer full.Stop()
	purge := time.NewTicker(r.cfg.PurgeEvery)
	defer purge.Stop()
	var collects sync.WaitGroup
	defer collects.Wait()
	collects.Go(func() { r.collectAgain(ctx) })
	r.full(ctx)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-full.C:
			r.full(ctx)
			r.snapshots(ctx)
		case <-purge.C:
			r.purge(ctx)
		case <-r.wake:
			r.pass(ctx, r.takeDirty(), nil)
		}
	}
}

// marks remember since when a sandbox is in a state of disagreement.
type marks map[api.SandboxID]mark

type mark struct {
	what  string
	since time.Time
	tries int
}

// age returns for how long what holds of id, without a break.
func (m marks) age(id api.SandboxID, what string, now time.Time) time.Duration {
	if m[id].what != what {
		m[id] = mark{what: what, since: now}
	}
	return now.Sub(m[id].since)
}
