package reconcile

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	me  = "this run"
	box = api.SandboxID("i00000000000000000001")
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func record(s state.SandboxState, change ...func(*state.Sandbox)) *state.Sandbox {
	sb := &state.Sandbox{
		ID: box, State: s, Node: "n", Creator: "another run", ModifyIndex: 7,
		CreatedAt: now.Add(-10 * time.Second), EndAt: now.Add(time.Hour),
	}
	if s == state.Starting {
		sb.Node = ""
	}
	if s == state.Stopping {
		sb.Reason = "deleted"
	}
	for _, c := range change {
		c(sb)
	}
	return sb
}

func found(node api.NodeID, s nodeapi.State, change ...func(*fleet.Found)) fleet.Found {
	f := fleet.Found{Node: node, Connected: true, Sandbox: nodeapi.Sandbox{
		ID: box, State: s, StartedAt: now.Add(-9 * time.Second), Deadline: now.Add(time.Hour),
	}}
	if s == nodeapi.StateStarting {
		f.Sandbox.StartedAt = time.Time{}
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

func away(f *fleet.Found) { f.Connected = false }

// TestDecide is the whole of right and wrong. Each case is decided twice: at once, and after all graces.
func TestDecide(t *testing.T) {
	on := nodeFacts{connected: true}
	silent := nodeFacts{why: "no answer"}
	gone := nodeFacts{gone: true, why: "not listed"}
	mine := func(s *state.Sandbox) { s.Creator = me }
	late := func(s *state.Sandbox) { s.EndAt = now.Add(-time.Hour) }
	sized := func(s *state.Sandbox) { s.CPUMillis, s.MemoryMB = 1000, 512 }
	small := func(f *fleet.Found) { f.Sandbox.Limits = nodeapi.Limits{CPUMillis: 1000, MemoryBytes: 256 << 20} }
	sharing := nodeFacts{connected: true, store: "shared"}
	copied := func(s *state.Sandbox) { s.Stored, s.StoredIn = "s1", "shared" }
	moving := func(s *state.Sandbox) { s.Moving = true }
	holding := func(run string) func(*state.Sandbox) {
		return func(s *state.Sandbox) {
			s.Hold = state.Hold{Active: s.State == state.Paused, Run: run, At: now, Index: 6}
		}
	}
	onDisk := func(id api.SnapshotID) func(*fleet.Found) {
		return func(f *fleet.Found) { f.Sandbox.Pause = &nodeapi.Pause{Depth: nodeapi.DepthCheckpointed, Snapshot: id} }
	}
	list := func(f ...fleet.Found) []fleet.Found { return f }
	running, stopped, made := nodeapi.StateRunning, nodeapi.StateStopped, nodeapi.StateStarting
	active := &placement.Placed{ID: box, State: placement.Active}
	pending := &placement.Placed{ID: box, State: placement.Pending}
	dead := &placement.Placed{ID: box, State: placement.Ended}
	for _, c := range []struct {
		name  string
		f     facts
		first verb
		later verb
		ends  state.SandboxState // of an end, later
	}{
		{"nothing anywhere", facts{}, leave, leave, ""},
		{"orphan on a node", facts{found: list(found("n", running))}, leave, destroy, ""},
		{"orphan at the placer", facts{placed: pending}, leave, destroy, ""},

		{"ended and gone", facts{record: record(state.Stopped)}, leave, leave, ""},
		{"ended but runs", facts{record: record(state.Failed), found: list(found("n", running))}, destroy, destroy, ""},
		{"ended but placed", facts{record: record(state.Stopped), placed: dead}, destroy, destroy, ""},

		{"starting here", facts{record: record(state.Starting, mine)}, leave, end, state.Failed},
		{"starting here, runs", facts{record: record(state.Starting, mine), found: list(found("n", running))}, leave, adopt, ""},
		{"orphaned start, runs", facts{record: record(state.Starting), found: list(found("n", running))}, adopt, adopt, ""},
		{"orphaned start, being made", facts{record: record(state.Starting), found: list(found("n", made))}, leave, end, state.Failed},
		{"orphaned start, not placed", facts{record: record(state.Starting), listed: true, all: true}, end, end, state.Failed},
		{"orphaned start, waits for room", facts{record: record(state.Starting), listed: true, all: true, placed: pending}, leave, end, state.Failed},
		{"orphaned start, a node is away", facts{record: record(state.Starting), listed: true}, leave, end, state.Failed},
		{"orphaned start, placer is away", facts{record: record(state.Starting), all: true}, leave, end, state.Failed},
		{"orphaned start, ran and stopped", facts{record: record(state.Starting), found: list(found("n", stopped))}, end, end, state.Stopped},

		{"as it should be", facts{record: record(state.Running), node: on, found: list(found("n", running))}, leave, leave, ""},
		{"wrong deadline", facts{record: record(state.Running, late), node: on, found: list(found("n", running))}, deadline, deadline, ""},
		{"less memory than is recorded", facts{record: record(state.Running, sized), node: on, found: list(found("n", running, small))}, leave, limits, ""},
		{"limits of a node of an older version", facts{record: record(state.Running, sized), node: on, found: list(found("n", running))}, leave, leave, ""},
		{"stopped by itself", facts{record: record(state.Running), node: on, found: list(found("n", stopped))}, end, end, state.Stopped},
		{"node forgot it", facts{record: record(state.Running), node: on}, missing, missing, state.Lost},
		{"node is silent", facts{record: record(state.Running), node: silent, found: list(found("n", running, away))}, leave, leave, ""},
		{"node is silent beyond the deadline", facts{record: record(state.Running, late), node: silent}, end, end, state.Lost},
		{"node is gone", facts{record: record(state.Running), node: gone}, leave, end, state.Lost},
		{"a second copy", facts{record: record(state.Running), node: on, found: list(found("m", running), found("n", running))}, evict, evict, ""},

		{"paused on its way to another node", facts{record: record(state.Running, moving), node: sharing, found: list(found("n", nodeapi.StatePaused, onDisk("")))}, leave, pause, ""},
		{"paused on its node", facts{record: record(state.Paused), node: on, found: list(found("n", nodeapi.StatePaused, onDisk("")))}, leave, leave, ""},
		{"paused, others share the store", facts{record: record(state.Paused), node: sharing, found: list(found("n", nodeapi.StatePaused, onDisk("")))}, store, leave, ""},
		{"paused, the copy is not recorded", facts{record: record(state.Paused), node: sharing, found: list(found("n", nodeapi.StatePaused, onDisk("s1")))}, pause, pause, ""},
		{"paused with a copy", facts{record: record(state.Paused, copied), node: sharing, found: list(found("n", nodeapi.StatePaused, onDisk("s1")))}, leave, leave, ""},
		{"paused with a copy, node is gone", facts{record: record(state.Paused, copied), node: gone}, leave, leave, ""},
		{"paused with a copy, node forgot it", facts{record: record(state.Paused, copied), node: on}, leave, leave, ""},
		{"paused with a copy, ended where it was", facts{record: record(state.Paused, copied), node: on, found: list(found("n", stopped))}, leave, leave, ""},
		{"paused with a copy, being made elsewhere", facts{record: record(state.Paused, copied), node: gone, found: list(found("m", made))}, leave, leave, ""},
		{"paused with a copy, runs elsewhere", facts{record: record(state.Paused, copied), node: gone, found: list(found("m", running))}, leave, resume, ""},
		{"paused without a copy, node is gone", facts{record: record(state.Paused), node: gone}, leave, end, state.Lost},

		{"another run was changing it", facts{record: record(state.Running, holding("another run")), node: on, found: list(found("n", running))}, leave, release, ""},
		{"another run was resuming it", facts{record: record(state.Paused, holding("another run")), node: on, found: list(found("n", nodeapi.StatePaused))}, leave, release, ""},
		{"another run has resumed it", facts{record: record(state.Paused, holding("another run")), node: on, found: list(found("n", running))}, leave, resume, ""},
		{"another run was resuming its copy", facts{record: record(state.Paused, copied, holding("another run")), node: gone}, leave, release, ""},
		{"this run is resuming it", facts{record: record(state.Paused, holding(me)), node: on, found: list(found("n", nodeapi.StatePaused))}, leave, leave, ""},

		{"stopping, runs", facts{record: record(state.Stopping), node: on, found: list(found("n", running))}, leave, destroy, ""},
		{"stopping, gone", facts{record: record(state.Stopping), node: on}, leave, end, state.Stopped},
		{"stopping, node is silent", facts{record: record(state.Stopping), node: silent}, leave, leave, ""},

		{"lost, still away", facts{record: record(state.Lost)}, leave, leave, ""},
		{"lost, lives", facts{record: record(state.Lost), node: on, found: list(found("n", running))}, adopt, adopt, ""},
		{"lost, lives beyond its deadline", facts{record: record(state.Lost, late), node: on, found: list(found("n", running))}, destroy, destroy, ""},
		{"lost, had stopped", facts{record: record(state.Lost), node: on, found: list(found("n", stopped))}, end, end, state.Stopped},
		{"lost, still placed", facts{record: record(state.Lost), placed: active}, leave, leave, ""},
		{"lost, still placed beyond its deadline", facts{record: record(state.Lost, late), placed: active}, destroy, destroy, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := &Config{Run: me, OrphanGrace: time.Minute, StopGrace: 15 * time.Second, HoldGrace: time.Minute, LostAfter: time.Minute, StartTimeout: time.Minute}
			m := marks{}
			c.f.id, c.f.now = box, now
			must.Eq(t, c.first, cfg.decide(c.f, m).verb, must.Sprint("at once"))
			c.f.now = now.Add(2 * time.Minute)
			a := cfg.decide(c.f, m)
			must.Eq(t, c.later, a.verb, must.Sprint("after the graces"))
			if a.verb == end || a.verb == missing {
				must.Eq(t, c.ends, a.end.State)
				must.NotEq(t, "", a.end.Reason)
				must.Eq(t, uint64(7), a.end.IfIndex)
			}
		})
	}
}

func TestFactsOfNode_silenceIsNotDeath(t *testing.T) {
	node := func(s health.Status, connected bool) map[api.NodeID]fleet.Node {
		return map[api.NodeID]fleet.Node{"n": {Connected: connected, Entry: health.Node{Status: s}, Problem: "p"}}
	}
	for _, c := range []struct {
		name            string
		nodes           map[api.NodeID]fleet.Node
		stale           bool
		connected, gone bool
	}{
		{"connected", node(health.Passing, true), false, true, false},
		{"connected though its check fails", node(health.Critical, true), false, true, false},
		{"silent, no checks", node(health.Unknown, false), false, false, false},
		{"silent, check passes", node(health.Passing, false), false, false, false},
		{"silent, check fails", node(health.Critical, false), false, false, true},
		{"silent, check failed before the directory went away", node(health.Critical, false), true, false, false},
		{"not listed", nil, false, false, true},
		{"not listed by a directory that is away", nil, true, false, false},
	} {
		got := factsOfNode("n", c.nodes, c.stale)
		must.Eq(t, c.connected, got.connected, must.Sprint(c.name))
		must.Eq(t, c.gone, got.gone, must.Sprint(c.name))
	}
}
