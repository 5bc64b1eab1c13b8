// Package rebalance looks at how nodes are loaded, and moves sandboxes from the fullest to the emptiest.
//
// It owns the view, the plan and the pace. A move itself is package lifecycle's; where a sandbox may run is the placer's to say; and nothing
// here runs on the way of a create.
package rebalance

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Machine is a node as the plan sees it.
type Machine struct {
	ID        api.NodeID
	Name      string
	Takes     bool   // new sandboxes may come
	Store     string // of snapshots; sandboxes move between nodes with the same; empty: none move
	CPUMillis int64  // thousandths of a core
	Memory    int64  // bytes
	Boxes     []Box
}

// Box is a sandbox as the plan sees it.
type Box struct {
	ID       api.SandboxID
	Class    string // QoS
	Reserved Amount // what the scheduler counts for it
	Used     Amount // at its last sample
	Ahead    Amount // predicted for the next Horizon
	Stays    string // why it cannot be moved; empty: it can
}

// Amount is of processor and memory.
type Amount struct {
	CPUMillis float64 // thousandths of a core
	Memory    float64 // bytes
}

func (a Amount) plus(b Amount) Amount  { return Amount{a.CPUMillis + b.CPUMillis, a.Memory + b.Memory} }
func (a Amount) minus(b Amount) Amount { return Amount{a.CPUMillis - b.CPUMillis, a.Memory - b.Memory} }

// Horizon is how far ahead use is predicted.
const Horizon = 15 * time.Minute

// Limits bound a plan.
type Limits struct {
	Moves   int      // at most; 0: 10
	MinGain float64  // of one move, in percentage points; 0: 1
	Classes []string // whose sandboxes may be moved; none: best_effort and burstable
}

// Bounds of what may be asked for.
const (
	MaxMoves  = 1000
	MaxAtOnce = 16
)

// Check says, with the field's name, what of l cannot be.
func (l Limits) Check() error {
	if l.Moves < 0 || l.Moves > MaxMoves {
		return fmt.Errorf("moves: %d is not between 1 and %d", l.Moves, MaxMoves)
	}
	if l.MinGain < 0 || l.MinGain > 100 || math.IsNaN(l.MinGain) {
		return fmt.Errorf("min_gain: %g is not between 0 and 100", l.MinGain)
	}
	for _, c := range l.Classes {
		if c != api.QoSGuaranteed && c != api.QoSBurstable && c != api.QoSBestEffort {
			return fmt.Errorf("classes: %.40q is none of %s, %s and %s", c, api.QoSGuaranteed, api.QoSBurstable, api.QoSBestEffort)
		}
	}
	return nil
}

func (l Limits) withDefaults() Limits {
	if l.Moves == 0 {
		l.Moves = 10
	}
	if l.MinGain == 0 {
		l.MinGain = 1
	}
	if len(l.Classes) == 0 {
		l.Classes = []string{api.QoSBestEffort, api.QoSBurstable}
	}
	return l
}

// Move is one sandbox from one node to another. Gain is by how many percentage points it lowers the spread of the nodes' loads.
type Move struct {
	Sandbox  api.SandboxID
	From, To api.NodeID
	Gain     float64
}

// load is the part of a machine that is in use before long, in percent: of processor or memory, whichever is more.
func (m *Machine) load(a Amount) float64 {
	return 100 * max(part(a.CPUMillis, m.CPUMillis), part(a.Memory, m.Memory))
}

func part(a float64, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return a / float64(of)
}

func (m *Machine) sum(of func(*Box) Amount) (a Amount) {
	for i := range m.Boxes {
		a = a.plus(of(&m.Boxes[i]))
	}
	return a
}

func ahead(b *Box) Amount    { return b.Ahead }
func reserved(b *Box) Amount { return b.Reserved }

// Spread is how far the loads of machines are apart: their standard deviation, in percentage points.
func Spread(loads []float64) float64 {
	if len(loads) == 0 {
		return 0
	}
	mean, sum := 0.0, 0.0
	for _, l := range loads {
		mean += l / float64(len(loads))
	}
	for _, l := range loads {
		sum += (l - mean) * (l - mean)
	}
	return math.Sqrt(sum / float64(len(loads)))
}

// Plan returns the moves that bring the loads of the next Horizon closest together, the best first, each as if those before it had been made.
// It moves nothing to a node that takes no work, has another store, or has no room left for what is reserved.
func Plan(machines []Machine, l Limits) []Move {
	l = l.withDefaults()
	p := newPlanner(machines, l)
	var out []Move
	for len(out) < l.Moves {
		best, ok := p.best()
		if !ok || best.Gain < l.MinGain {
			break
		}
		p.make(best)
		out = append(out, best)
	}
	return out
}

// planner is a plan on its way: sums of each machine, and which sandboxes have been moved.
type planner struct {
	machines []Machine
	limits   Limits
	ahead    []Amount
	reserved []Amount
	loads    []float64
	moved    map[api.SandboxID]bool
}

func newPlanner(machines []Machine, l Limits) *planner {
	p := &planner{machines: machines, limits: l, moved: map[api.SandboxID]bool{}}
	for i := range machines {
		m := &machines[i]
		a := m.sum(ahead)
		p.ahead, p.reserved = append(p.ahead, a), append(p.reserved, m.sum(reserved))
		p.loads = append(p.loads, m.load(a))
	}
	return p
}

// best returns the single move that gains most. Of equals the first in the order of nodes and ids, so that a plan is the same each time.
func (p *planner) best() (Move, bool) {
	now := Spread(p.loads)
	loads := slices.Clone(p.loads)
	var best Move
	found := false
	for from := range p.machines {
		for i := range p.machines[from].Boxes {
			b := &p.machines[from].Boxes[i]
			if p.moved[b.ID] || b.Stays != "" || !slices.Contains(p.limits.Classes, b.Class) {
				continue
			}
			for to := range p.machines {
				if p.loads[to] >= p.loads[from] || !p.fits(from, to, b) {
					continue
				}
				loads[from] = p.machines[from].load(p.ahead[from].minus(b.Ahead))
				loads[to] = p.machines[to].load(p.ahead[to].plus(b.Ahead))
				gain := now - Spread(loads)
				loads[from], loads[to] = p.loads[from], p.loads[to]
				m := Move{Sandbox: b.ID, From: p.machines[from].ID, To: p.machines[to].ID, Gain: gain}
				if !found || cmp.Or(cmp.Compare(best.Gain, m.Gain), cmp.Compare(m.Sandbox, best.Sandbox)) < 0 {
					best, found = m, true
				}
			}
		}
	}
	return best, found
}

func (p *planner) fits(from, to int, b *Box) bool {
	f, t := &p.machines[from], &p.machines[to]
	if from == to || !t.Takes || f.Store == "" || f.Store != t.Store {
		return false
	}
	r := p.reserved[to].plus(b.Reserved)
	return r.CPUMillis <= float64(t.CPUMillis) && r.Memory <= float64(t.Memory)
}

func (p *planner) make(m Move) {
	p.moved[m.Sandbox] = true
	from := slices.IndexFunc(p.machines, func(x Machine) bool { return x.ID == m.From })
	to := slices.IndexFunc(p.machines, func(x Machine) bool { return x.ID == m.To })
	for i := range p.machines[from].Boxes {
		b := &p.machines[from].Boxes[i]
		if b.ID != m.Sandbox {
			continue
		}
		p.ahead[from], p.ahead[to] = p.ahead[from].minus(b.Ahead), p.ahead[to].plus(b.Ahead)
		p.reserved[from], p.reserved[to] = p.reserved[from].minus(b.Reserved), p.reserved[to].plus(b.Reserved)
	}
	p.loads[from], p.loads[to] = p.machines[from].load(p.ahead[from]), p.machines[to].load(p.ahead[to])
}

// Predict returns the mean use over the next Horizon by the trend of past samples, the oldest first; never below zero, and at most limit where
// that is not 0. Two samples make no trend: then it is as it was.
func Predict(samples []api.Sample, of func(api.Sample) float64, limit float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	last := samples[len(samples)-1].Time
	var sx, sy, sxx, sxy float64
	for _, s := range samples {
		x, y := s.Time.Sub(last).Seconds(), of(s)
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	n := float64(len(samples))
	mean := sy / n
	got := mean
	if span := last.Sub(samples[0].Time); len(samples) > 2 && span > 0 {
		slope := (n*sxy - sx*sy) / (n*sxx - sx*sx)
		// A trend is believed for as long as it has been seen.
		got = mean - slope*sx/n + slope*min(Horizon, span).Seconds()/2
	}
	if limit > 0 {
		got = min(got, limit)
	}
	return max(got, 0)
}

// String is a move in words.
func (m Move) String() string {
	return fmt.Sprintf("%s from %s to %s: %.1f points", m.Sandbox, m.From, m.To, m.Gain)
}
