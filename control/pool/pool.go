// Package pool keeps sandboxes running that nobody has yet, so that a create finds one instead of starting one.
//
// It owns how many there are, their making, warming up and removal, and which of them a create gets. A slot is a sandbox like any other to
// placers, nodes and their accounts, and becomes the sandbox of its id. Who has a slot is the state's to say, never this package's; and it
// never lets a create wait.
package pool

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State is the part of the state that pools need.
type State interface {
	Pools() ([]state.Pool, error)
	PoolNamed(tenant, name string) (state.Pool, error)
	Slots(id api.PoolID) ([]state.Slot, error)
	EachSlot(id api.PoolID, f func(*state.Slot) bool) error
	Tenant(id string) (state.Tenant, error)
	Sandbox(id api.SandboxID) (state.Sandbox, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Fleet is the part of the fleet that pools need.
type Fleet interface {
	Await(id api.SandboxID) *fleet.Waiter
	Client(id api.NodeID) (*nodeapi.Client, error)
	Nodes() []fleet.Node
	Find(id api.SandboxID) []fleet.Found
	Node(id api.NodeID) (fleet.Node, bool)
}

// Quotas says what tenants may use and do use.
type Quotas interface {
	Get(tenant string) (state.Quota, [state.NumLimits]int64, error)
	Usage(tenant string) (state.Use, error)
}

// Config holds the service's seams and pace. Zero values mean the defaults.
type Config struct {
	State     State               // required
	Fleet     Fleet               // required
	Placer    placement.Placer    // required
	Templates lifecycle.Templates // required
	Quotas    Quotas              // nil: nobody is held to anything
	// Size fills in, and checks, what a create of a template would have of thousandths of a core and MiB. Required.
	Size   func(t state.Template, cpuMillis, memoryMB, diskMB *int64) error
	Run    string // required: this run of the control service
	Logger hclog.Logger
	Now    func() time.Time
	NewID  func() api.SandboxID

	Parallel     int           // slots of one pool that are made at a time; 8
	Interval     time.Duration // between two looks at the slots; 500 ms
	StartTimeout time.Duration // from placing a slot to its being warm; 2 min
	AwayAfter    time.Duration // that a node does not answer until its slots are given up; 30 s
	Backoff      time.Duration // after a slot that could not be made, doubled up to a minute; 1 s
}

func (c *Config) check() error {
	if c.State == nil || c.Fleet == nil || c.Placer == nil || c.Templates == nil || c.Size == nil || c.Run == "" {
		return errors.New("pool: state, fleet, placer, templates, size and run are required")
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
	if c.Parallel == 0 {
		c.Parallel = 8
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.Interval, 500 * time.Millisecond}, {&c.StartTimeout, 2 * time.Minute}, {&c.AwayAfter, 30 * time.Second}, {&c.Backoff, time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return nil
}

// Service is lifecycle.Pools on every server, and keeps the pools filled where Run runs.
type Service struct {
	cfg  Config
	log  hclog.Logger
	wake chan struct{} // holds one word while a look is due

	mu      sync.Mutex
	taken   map[api.SandboxID]struct{} // by creates under way
	claimed time.Time                  // last
	counts  map[api.PoolID]*count
	kept    map[api.PoolID]*kept // what the keeper knows of each pool; empty where it does not run
}

// count is what this server has counted and not recorded yet.
type count struct{ hits, misses uint64 }

var _ lifecycle.Pools = (*Service)(nil)

// New returns a service that gives slots out. Run makes them.
func New(cfg Config) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Service{
		cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1),
		taken: map[api.SandboxID]struct{}{}, counts: map[api.PoolID]*count{}, kept: map[api.PoolID]*kept{},
	}, nil
}

// Take implements lifecycle.Pools. A tenant's own pools come before shared ones.
func (s *Service) Take(ask lifecycle.Ask) (lifecycle.Slot, api.PoolID, bool) {
	pools, err := s.cfg.State.Pools()
	if err != nil {
		s.log.Error("pools cannot be read", "error", err)
		return lifecycle.Slot{}, "", false
	}
	var of api.PoolID
	for _, own := range []bool{true, false} {
		for i := range pools {
			p := &pools[i]
			if (p.Tenant == ask.Tenant) != own || !own && !p.Shared || !s.fits(p, ask) {
				continue
			}
			if of == "" {
				of = p.ID
			}
			if slot, ok := s.takeFrom(p.ID, ask); ok {
				return slot, p.ID, true
			}
		}
	}
	return lifecycle.Slot{}, of, false
}

// fits reports whether a pool is for sandboxes of a kind.
func (s *Service) fits(p *state.Pool, ask lifecycle.Ask) bool {
	if p.CPUMillis != ask.CPUMillis || p.MemoryMB != ask.MemoryMB || p.DiskMB != ask.DiskMB {
		return false
	}
	if cmp.Or(p.QoS, defaultQoS) != cmp.Or(ask.QoS, defaultQoS) || cmp.Or(p.Profile, defaultProfile) != cmp.Or(ask.Profile, defaultProfile) {
		return false
	}
	t, err := s.cfg.Templates.Resolve(context.Background(), p.Tenant, p.Template)
	if err != nil || t.Digest != ask.Digest {
		return false
	}
	where, err := rules(p, t)
	return err == nil && where == ask.Where
}

// What an empty class and an empty profile mean to a node.
const (
	defaultQoS     = "burstable"
	defaultProfile = "default"
)

// rules are where the sandboxes of a pool may run: its own, and its template's.
func rules(p *state.Pool, t state.Template) (placement.Rules, error) {
	return placement.Rules(t.Where).And(placement.Rules(p.Where))
}

func (s *Service) takeFrom(id api.PoolID, ask lifecycle.Ask) (slot lifecycle.Slot, ok bool) {
	err := s.cfg.State.EachSlot(id, func(row *state.Slot) bool {
		if row.State != state.SlotReady || row.Digest != ask.Digest || row.Where != string(ask.Where) || s.isTaken(row.ID) { // of many at once, most look at what others have
			return true
		}
		found, there := s.there(row)
		if !there || !found.Connected || !s.takesWork(row.Node) || !s.reserve(row.ID) {
			return true
		}
		slot, ok = lifecycle.Slot{ID: row.ID, Pool: id, Node: row.Node, Limits: found.Sandbox.Limits}, true
		return false
	})
	if err != nil {
		s.log.Error("slots cannot be read", "pool", id, "error", err)
	}
	return slot, ok
}

// there returns a node's report of a slot that runs and that nobody has.
func (s *Service) there(row *state.Slot) (fleet.Found, bool) {
	for _, f := range s.cfg.Fleet.Find(row.ID) {
		if f.Node == row.Node && f.Sandbox.State == nodeapi.StateRunning && f.Sandbox.Warm {
			return f, true
		}
	}
	return fleet.Found{}, false
}

// takesWork reports whether a node may get new work.
func (s *Service) takesWork(id api.NodeID) bool {
	n, ok := s.cfg.Fleet.Node(id)
	return ok && n.Status.State.TakesWork()
}

func (s *Service) isTaken(id api.SandboxID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, is := s.taken[id]
	return is
}

// reserve keeps other creates of this server from a slot.
func (s *Service) reserve(id api.SandboxID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, is := s.taken[id]; is {
		return false
	}
	s.taken[id] = struct{}{}
	return true
}

// Done implements lifecycle.Pools.
func (s *Service) Done(slot lifecycle.Slot, gone bool) {
	s.mu.Lock()
	delete(s.taken, slot.ID)
	last := len(s.taken) == 0
	if gone {
		s.claimed = s.cfg.Now()
	}
	s.mu.Unlock()
	if gone && last {
		s.Wake()
	}
}

// Count implements lifecycle.Pools.
func (s *Service) Count(pool api.PoolID, hit bool) {
	s.mu.Lock()
	c := s.counts[pool]
	if c == nil {
		c = &count{}
		s.counts[pool] = c
	}
	if hit {
		c.hits++
	} else {
		c.misses++
	}
	s.mu.Unlock()
	if !hit {
		s.Wake()
	}
}

// Wake has the keeper look now. It returns at once.
func (s *Service) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
