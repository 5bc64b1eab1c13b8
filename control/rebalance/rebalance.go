package rebalance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State is the part of the state that is looked at.
type State interface {
	Leads() bool
	Live() ([]state.Sandbox, error)
	Tenant(id string) (state.Tenant, error)
}

// Fleet is the part of the fleet that is looked at.
type Fleet interface {
	Nodes() []fleet.Node
	Client(id api.NodeID) (*nodeapi.Client, error)
}

// Mover carries a move out; lifecycle.Service is one.
type Mover interface {
	// MoveTo has a running sandbox go on on another node. One that cannot be moved goes on where it is.
	MoveTo(ctx context.Context, id api.SandboxID, to api.NodeID) error
}

// Policy is when the leader moves by itself, and how much. The zero policy is never.
type Policy struct {
	Every  time.Duration // between two plans; 0: never
	AtOnce int           // moves at a time; 0: 1
	From   time.Duration // since midnight UTC; From == To: all day. From after To: over midnight
	To     time.Duration
	Limits
}

// Config holds the parts. State, Fleet and Mover are required.
type Config struct {
	State  State
	Fleet  Fleet
	Mover  Mover
	Policy Policy
	Logger hclog.Logger
	Now    func() time.Time
}

// Service shows how nodes are loaded, plans, and moves.
type Service struct {
	cfg Config
	one sync.Mutex // held while moves are made: two plans at a time would undo each other
}

// New returns a service.
func New(cfg Config) (*Service, error) {
	if cfg.State == nil || cfg.Fleet == nil || cfg.Mover == nil {
		return nil, errors.New("rebalance: state, fleet and mover are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg}, nil
}

// samplesOf bounds of how many sandboxes of a node the past is read, the largest first: of the others the last sample counts.
const samplesOf = 200

// nodeTimeout is how long one node may keep a view waiting. Of one that takes longer only the reservations are known.
const nodeTimeout = 5 * time.Second

// View is all connected nodes with what runs there.
func (s *Service) View(ctx context.Context) ([]Machine, error) {
	live, err := s.cfg.State.Live()
	if err != nil {
		return nil, err
	}
	on := map[api.NodeID][]state.Sandbox{}
	for _, sb := range live {
		if sb.State == state.Running {
			on[sb.Node] = append(on[sb.Node], sb)
		}
	}
	var nodes []fleet.Node
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Connected {
			nodes = append(nodes, n)
		}
	}
	slices.SortFunc(nodes, func(a, b fleet.Node) int { return cmp.Compare(a.Self.ID, b.Self.ID) })
	out := make([]Machine, len(nodes))
	var g errgroup.Group
	g.SetLimit(16)
	for i, n := range nodes {
		g.Go(func() error {
			out[i] = s.machine(ctx, n, on[n.Self.ID])
			return nil
		})
	}
	_ = g.Wait() // a node that does not tell is in the view with what is known
	return out, ctx.Err()
}

func (s *Service) machine(ctx context.Context, n fleet.Node, boxes []state.Sandbox) Machine {
	m := Machine{
		ID: n.Self.ID, Name: n.Self.Name, Takes: n.Status.State.TakesWork(), Store: n.Self.SnapshotStore,
		CPUMillis: int64(n.Self.CPUs) * 1000, Memory: n.Self.MemoryBytes, Boxes: make([]Box, len(boxes)),
	}
	slices.SortFunc(boxes, func(a, b state.Sandbox) int {
		return cmp.Or(cmp.Compare(b.MemoryMB, a.MemoryMB), cmp.Compare(a.ID, b.ID))
	})
	for i, sb := range boxes {
		b := &m.Boxes[i]
		*b = Box{
			ID: sb.ID, Class: cmp.Or(sb.QoS, api.QoSBurstable), Stays: s.stays(sb),
			Reserved: Amount{float64(cmp.Or(sb.Limits.ReservedCPU, sb.CPUMillis)), float64(cmp.Or(sb.Limits.ReservedMB, sb.MemoryMB)) * (1 << 20)},
		}
		b.Used, b.Ahead = b.Reserved, b.Reserved
	}
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	if err := s.measure(ctx, &m); err != nil {
		s.cfg.Logger.Debug("node does not tell what its sandboxes use: their reservations count", "node", m.ID, "error", err)
	}
	return m
}

// stays says why a sandbox is not to be moved.
func (s *Service) stays(sb state.Sandbox) string {
	if sb.Where != "" {
		return "it has placement rules of its own"
	}
	if t, err := s.cfg.State.Tenant(sb.Tenant); err != nil || t.Isolation.Compute == state.Dedicated {
		return "its tenant has nodes of its own"
	}
	return ""
}

// measure replaces reservations by what samples say.
func (s *Service) measure(ctx context.Context, m *Machine) error {
	if len(m.Boxes) == 0 {
		return nil
	}
	node, err := s.cfg.Fleet.Client(m.ID)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(m.Boxes, nodeapi.MaxLatest) {
		ids := make([]api.SandboxID, len(part))
		for i := range part {
			ids[i] = part[i].ID
		}
		latest, err := node.Latest(ctx, ids)
		if err != nil {
			return err
		}
		for i := range part {
			if sample, ok := latest[part[i].ID]; ok {
				part[i].Used = Amount{cpuOf(sample), memoryOf(sample)}
				part[i].Ahead = part[i].Used
			}
		}
	}
	since := s.cfg.Now().Add(-Horizon)
	for i := range m.Boxes[:min(len(m.Boxes), samplesOf)] {
		b := &m.Boxes[i]
		past, err := node.Samples(ctx, b.ID, since, time.Time{})
		if err != nil {
			return err
		}
		if len(past) > 0 {
			b.Ahead = Amount{
				Predict(past, cpuOf, float64(past[len(past)-1].CPUMillis)), Predict(past, memoryOf, float64(past[len(past)-1].MemoryTotal)),
			}
		}
	}
	return nil
}

func cpuOf(s api.Sample) float64    { return s.CPUPercent * 10 } // percent of one core
func memoryOf(s api.Sample) float64 { return float64(s.MemoryBytes) }

// Show returns how nodes are loaded, and what would be moved.
func (s *Service) Show(ctx context.Context, l Limits) (api.Rebalance, error) {
	view, err := s.View(ctx)
	if err != nil {
		return api.Rebalance{}, err
	}
	return show(view, Plan(view, l)), nil
}

func show(view []Machine, plan []Move) api.Rebalance {
	out := api.Rebalance{Nodes: []api.NodeLoad{}, Moves: []api.PlannedMove{}}
	var loads []float64
	for i := range view {
		m := &view[i]
		r, u, a := m.sum(reserved), m.sum(func(b *Box) Amount { return b.Used }), m.sum(ahead)
		loads = append(loads, m.load(a))
		movable := 0
		for _, b := range m.Boxes {
			if b.Stays == "" && m.Store != "" {
				movable++
			}
		}
		out.Nodes = append(out.Nodes, api.NodeLoad{
			ID: m.ID, Name: m.Name, TakesWork: m.Takes, CPUMillis: m.CPUMillis, MemoryBytes: m.Memory, Sandboxes: len(m.Boxes), Movable: movable,
			Reserved: amount(r), Used: amount(u), Predicted: amount(a), LoadPercent: m.load(a),
		})
	}
	out.Spread = Spread(loads)
	out.SpreadAfter = out.Spread
	for _, m := range plan {
		out.Moves = append(out.Moves, api.PlannedMove{Sandbox: m.Sandbox, From: m.From, To: m.To, Gain: m.Gain})
		out.SpreadAfter -= m.Gain
	}
	return out
}

func amount(a Amount) api.Load {
	return api.Load{CPUMillis: int64(a.CPUMillis), MemoryBytes: int64(a.Memory)}
}

// Apply plans and moves, so many at a time, and returns the plan with what became of each move. It is the leader's.
func (s *Service) Apply(ctx context.Context, l Limits, atOnce int) (api.Rebalance, error) {
	if !s.cfg.State.Leads() {
		return api.Rebalance{}, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "moves are the leader's, and this server does not lead")
	}
	if !s.one.TryLock() {
		return api.Rebalance{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandboxes are being moved already")
	}
	defer s.one.Unlock()
	view, err := s.View(ctx)
	if err != nil {
		return api.Rebalance{}, err
	}
	out := show(view, Plan(view, l))
	var g errgroup.Group
	g.SetLimit(max(1, atOnce))
	for i := range out.Moves {
		m := &out.Moves[i]
		g.Go(func() error {
			err := ctx.Err()
			if err == nil {
				err = s.cfg.Mover.MoveTo(ctx, m.Sandbox, m.To)
			}
			m.Done = err == nil
			if err != nil {
				m.Error = err.Error()
				s.cfg.Logger.Warn("sandbox was not moved", "sandbox", m.Sandbox, "from", m.From, "to", m.To, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // each move has its own error
	return out, nil
}

// Run moves by the policy until ctx ends. One server does it at a time.
func (s *Service) Run(ctx context.Context) {
	p := s.cfg.Policy
	if p.Every <= 0 {
		return
	}
	tick := time.NewTicker(p.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !p.open(s.cfg.Now()) {
			continue
		}
		out, err := s.Apply(ctx, p.Limits, p.AtOnce)
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Logger.Warn("nodes are not rebalanced", "error", err)
			}
			continue
		}
		if len(out.Moves) > 0 {
			s.cfg.Logger.Info("nodes rebalanced", "moves", len(out.Moves), "spread", fmt.Sprintf("%.1f", out.Spread), "planned", fmt.Sprintf("%.1f", out.SpreadAfter))
		}
	}
}

// open reports whether the policy's hours are on.
func (p Policy) open(now time.Time) bool {
	now = now.UTC()
	at := now.Sub(now.Truncate(24 * time.Hour))
	switch {
	case p.From == p.To:
		return true
	case p.From < p.To:
		return at >= p.From && at < p.To
	}
	return at >= p.From || at < p.To
}
