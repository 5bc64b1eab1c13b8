package reconcile

import (
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// facts are everything that a decision about one sandbox rests on.
type facts struct {
	now    time.Time
	id     api.SandboxID
	record *state.Sandbox   // nil: no record knows it
	found  []fleet.Found    // what nodes report, live ones first; only owned by the control service
	last   *nodeapi.Sandbox // as its node reported it stopped, before it forgot it
	node   nodeFacts        // of record.Node
	all    bool             // every node of the directory is connected
	placed *placement.Placed
	listed bool   // placed was asked for: nil means not placed
	slot   bool   // of a pool, which looks after it
	policy string // what record may reach, as nodeapi.PolicyDigest
}

// nodeFacts say what is known of a node.
type nodeFacts struct {
	connected bool
	gone      bool   // the directory knows for sure that it does not work
	why       string // of gone, or of not being connected
	store     string // its snapshot store, where another node that answers has the same
}

// verb is what to do about a sandbox.
type verb int

const (
	leave    verb = iota
	adopt         // record that it runs where it was found
	end           // record that it ended, then let the placer forget it
	missing       // ask its node, and end it as lost where that has not got it
	destroy       // end it on the nodes
	evict         // end copies on nodes where it does not belong
	deadline      // tell the node its deadline
	limits        // tell the node its limits
	network       // tell the node what it may reach
	pause         // record that it is paused
	resume        // record that it runs again
	claim         // give it, a slot still, to whom it is recorded to be
	store         // have its node put a copy where other nodes find it
	release       // give back what a change holds that nobody makes any more
)

// storeAgain is after how long a node is asked again for a stored copy that has not come.
const storeAgain = 5 * time.Minute

// holdTime is how long a change of this run may take.
const holdTime = 5 * time.Minute

// deadlineSlack is how far a node's deadline may be from the recorded one.
const deadlineSlack = 10 * time.Millisecond

// action is a decision.
type action struct {
	verb  verb
	end   state.End   // of end and missing
	found fleet.Found // of adopt, evict, deadline, limits, network and release
}

// decide is the whole of what the reconciler knows about right and wrong. It waits out graces by the marks and has no
// other effect.
func (c *Config) decide(f facts, m marks) action {
	switch {
	case f.record == nil && f.slot:
		return c.fine(f, m)
	case f.record == nil:
		return c.unknown(f, m)
	case f.record.State == state.Lost:
		return c.lost(f, m)
	case f.record.State.Ended():
		if len(f.found) > 0 || f.placed != nil {
			return action{verb: destroy}
		}
		return c.fine(f, m)
	case f.record.State == state.Starting:
		return c.starting(f, m)
	case f.record.State == state.Stopping:
		return c.stopping(f, m)
	}
	return c.running(f, m)
}

func (c *Config) fine(f facts, m marks) action {
	delete(m, f.id)
	return action{}
}

// unknown is a sandbox of the control service that no record knows: of a record that was purged, or of a state that was
// lost. Its record always precedes a sandbox, so nobody can be about to write it.
func (c *Config) unknown(f facts, m marks) action {
	if len(f.found) == 0 && f.placed == nil {
		return c.fine(f, m)
	}
	if m.age(f.id, "unknown", f.now) < c.OrphanGrace {
		return action{}
	}
	return action{verb: destroy}
}

// lost is one that was given up. It is taken back where it turns out to live; its real end counts more than a guess.
func (c *Config) lost(f facts, m marks) action {
	if len(f.found) > 0 {
		found := f.found[0]
		if found.Sandbox.State == nodeapi.StateStopped {
			return action{verb: end, end: f.stopped(found.Sandbox)}
		}
		if found.Connected && found.Sandbox.State == nodeapi.StateRunning && f.now.Before(f.record.EndAt) {
			return action{verb: adopt, found: found}
		}
		if found.Connected && found.Sandbox.State == nodeapi.StatePaused {
			return action{verb: pause, found: found}
		}
	}
	if f.now.After(f.record.EndAt) && (len(f.found) > 0 || f.placed != nil) {
		return action{verb: destroy}
	}
	return c.fine(f, m)
}

// starting is left to its create call as long as that can be alive. After it, the sandbox is finished where it runs, and
// failed where it cannot come any more.
func (c *Config) starting(f facts, m marks) action {
	age := f.now.Sub(f.record.CreatedAt)
	if f.record.Creator == c.Run && age < c.StartTimeout {
		return c.fine(f, m)
	}
	if len(f.found) > 0 {
		found := f.found[0]
		switch {
		case found.Sandbox.State == nodeapi.StateRunning && found.Connected:
			return action{verb: adopt, found: found}
		case found.Sandbox.State == nodeapi.StateStopped:
			return action{verb: end, end: f.stopped(found.Sandbox)}
		}
	}
	waiting := len(f.found) > 0 || !f.listed || !f.all || (f.placed != nil && f.placed.State != placement.Ended)
	if waiting && age < c.StartTimeout {
		return action{}
	}
	reason := "the control service that was creating it ended, and no node has it"
	if waiting {
		reason = fmt.Sprintf("it was not running within %s", c.StartTimeout)
	}
	return action{verb: end, end: f.ended(state.Failed, reason)}
}

// stopping is left to its delete call for a moment.
func (c *Config) stopping(f facts, m marks) action {
	if m.age(f.id, fmt.Sprint("stopping ", f.record.ModifyIndex), f.now) < c.StopGrace {
		return action{}
	}
	for _, found := range f.found {
		if found.Sandbox.State != nodeapi.StateStopped {
			if lost, ok := c.nodeLost(f, m); ok {
				return lost
			}
			return action{verb: destroy}
		}
	}
	if len(f.found) == 0 && f.record.Node != "" && !f.node.connected {
		lost, _ := c.nodeLost(f, m)
		return lost
	}
	return action{verb: end, end: f.ended(state.Stopped, f.record.Reason)}
}

// moveGraces is how many times as long as a delete a move has to finish by itself.
const moveGraces = 6

// running is as it should be where its node has it as recorded: running with the right deadline, or paused.
func (c *Config) running(f facts, m marks) action {
	if f.record.State == state.Paused && f.record.Stored != "" {
		return c.stored(f, m)
	}
	var here *fleet.Found
	for i, found := range f.found {
		if found.Node == f.record.Node {
			here = &f.found[i]
		} else if found.Connected && found.Sandbox.State != nodeapi.StateStopped {
			return action{verb: evict, found: found}
		}
	}
	if !f.node.connected {
		if lost, ok := c.nodeLost(f, m); ok {
			return lost
		}
		return action{}
	}
	switch {
	case here == nil && f.last != nil:
		return action{verb: end, end: f.stopped(*f.last)}
	case here == nil:
		// What this server has heard of the node may be older than the record, which another one wrote: only the node knows.
		return action{verb: missing, end: f.ended(state.Lost, fmt.Sprintf("node %s no longer has it", f.record.Node))}
	case here.Sandbox.State == nodeapi.StateStopped:
		return action{verb: end, end: f.stopped(here.Sandbox)}
	case here.Sandbox.State == nodeapi.StatePaused && f.record.State == state.Running:
		// A node pauses by itself at a deadline. A report from before the last resume is of the past.
		p := here.Sandbox.Pause
		age := m.age(f.id, fmt.Sprint("paused ", f.record.ModifyIndex), f.now)
		if (p == nil || !p.At.After(f.record.ResumedAt)) && age < c.StopGrace {
			return action{}
		}
		// Whoever moves it records the pause with its stored copy, once there is one. Recorded before, it would be stored twice.
		if f.record.Moving && age < moveGraces*c.StopGrace {
			return action{}
		}
		return action{verb: pause, found: *here}
	case here.Sandbox.State == nodeapi.StateRunning && f.record.State == state.Paused:
		// The service died between the resume and its record, or the node's report is of the past yet.
		if m.age(f.id, fmt.Sprint("resumed ", f.record.ModifyIndex), f.now) < c.StopGrace {
			return action{}
		}
		return action{verb: resume, found: *here}
	case c.forgotten(f):
		return action{verb: release, found: *here}
	case f.record.State == state.Paused:
		return c.paused(f, m, *here)
	case here.Sandbox.State == nodeapi.StateRunning && here.Sandbox.Warm:
		// The service died between the entry and the call to the node, or the call is under way.
		if m.age(f.id, fmt.Sprint("claimed ", f.record.ModifyIndex), f.now) < c.StopGrace {
			return action{}
		}
		return action{verb: claim, found: *here}
	case here.Sandbox.State == nodeapi.StateRunning && here.Sandbox.Deadline.Sub(f.record.EndAt).Abs() > deadlineSlack:
		return action{verb: deadline, found: *here}
	case here.Sandbox.State == nodeapi.StateRunning && differ(*f.record, here.Sandbox.Limits):
		if m.age(f.id, fmt.Sprint("limits ", f.record.ModifyIndex), f.now) < c.StopGrace { // a call that changes them may be under way
			return action{}
		}
		return action{verb: limits, found: *here}
	case here.Sandbox.State == nodeapi.StateRunning && here.Sandbox.Policy != "" && here.Sandbox.Policy != f.policy:
		if m.age(f.id, fmt.Sprint("network ", f.record.ModifyIndex, f.policy), f.now) < c.StopGrace {
			return action{}
		}
		return action{verb: network, found: *here}
	}
	return c.fine(f, m)
}

// forgotten reports whether a change holds something for a sandbox that nobody makes any more: the service that was to has died, or could
// not write. One that only lost the lead may be in its call to the node yet.
func (c *Config) forgotten(f facts) bool {
	h, grace := f.record.Hold, holdTime
	if h.Run != c.Run {
		grace = c.HoldGrace
	}
	return h.Index != 0 && f.now.Sub(h.At) > grace
}

// paused is kept on its node. Where others share its store they are to find it there, too.
func (c *Config) paused(f facts, m marks, here fleet.Found) action {
	p := here.Sandbox.Pause
	if p == nil || p.Depth != nodeapi.DepthCheckpointed || f.node.store == "" {
		return c.fine(f, m)
	}
	if p.Snapshot != "" {
		return action{verb: pause, found: here}
	}
	what := fmt.Sprint("store ", f.record.ModifyIndex)
	asked := m[f.id].what == what
	if age := m.age(f.id, what, f.now); asked && age < storeAgain {
		return action{}
	}
	m[f.id] = mark{what: what, since: f.now}
	return action{verb: store, found: here}
}

// stored is a paused sandbox with a copy in a store: the copy is the sandbox, whatever becomes of its node. Where it runs it was
// resumed, by a service that died before it recorded that.
func (c *Config) stored(f facts, m marks) action {
	for _, found := range f.found {
		moved := found.Node != f.record.Node && found.Sandbox.State == nodeapi.StatePaused
		if !found.Connected || found.Sandbox.State != nodeapi.StateRunning && !moved {
			continue
		}
		if m.age(f.id, fmt.Sprint("resumed ", f.record.ModifyIndex), f.now) < c.StopGrace {
			return action{}
		}
		return action{verb: resume, found: found}
	}
	if c.forgotten(f) {
		return action{verb: release}
	}
	return c.fine(f, m)
}

// differ reports whether a node enforces something else than what is recorded. What neither was asked for nor reported to be
// enforced counts for nothing: it is the node's own.
func differ(sb state.Sandbox, at nodeapi.Limits) bool {
	want := lifecycle.NodeLimits(sb)
	return want.CPUMillis != at.CPUMillis && at.CPUMillis != 0 || want.MemoryBytes != at.MemoryBytes && at.MemoryBytes != 0 ||
		sb.Limits.PIDs != 0 && !sb.Limits.Same(lifecycle.Enforced(at))
}

// nodeLost decides about a sandbox whose node is not connected. A node that merely does not answer is not dead: its
// sandboxes go on until the directory says that it is gone, or until their deadlines, which nodes keep by themselves.
func (c *Config) nodeLost(f facts, m marks) (action, bool) {
	if f.node.connected {
		return action{}, false
	}
	if f.node.gone {
		if m.age(f.id, "gone", f.now) >= c.LostAfter {
			return action{verb: end, end: f.ended(state.Lost, fmt.Sprintf("node %s is gone: %s", f.record.Node, f.node.why))}, true
		}
		return action{}, true
	}
	if f.record.State != state.Paused && f.now.After(f.record.EndAt.Add(c.LostAfter)) { // a paused one has no deadline
		return action{verb: end, end: f.ended(state.Lost,
			fmt.Sprintf("its deadline has passed and node %s does not answer: %s", f.record.Node, f.node.why))}, true
	}
	return action{}, false
}

func (f facts) ended(s state.SandboxState, reason string) state.End {
	return state.End{ID: f.id, State: s, Reason: reason, At: f.now.UTC(), IfIndex: f.record.ModifyIndex}
}

// stopped is the end that a node reports.
func (f facts) stopped(sb nodeapi.Sandbox) state.End {
	e := f.ended(state.Stopped, nodeapi.ExitStopped)
	if !sb.EndedAt.IsZero() {
		e.At = sb.EndedAt.UTC()
	}
	if x := sb.Exit; x != nil {
		e.Reason = x.Reason
		e.Exit = &state.Exit{Reason: x.Reason, Code: x.Code, Signal: x.Signal, OOM: x.OOM, PIDs: x.PIDs, Disk: x.Disk, Message: x.Message}
		if x.Reason == nodeapi.ExitLost {
			e.State = state.Lost
		}
	}
	if sb.StartedAt.IsZero() {
		e.State = state.Failed
	}
	if f.record.State == state.Stopping && f.record.Reason != "" {
		e.Reason = f.record.Reason
	}
	return e
}

// factsOfNode says what is known of the node of a record.
func factsOfNode(id api.NodeID, nodes map[api.NodeID]fleet.Node, stale bool) nodeFacts {
	n, ok := nodes[id]
	switch {
	case !ok:
		return nodeFacts{gone: !stale, why: "the directory of nodes does not list it"}
	case n.Connected:
		return nodeFacts{connected: true, store: sharedStore(n, nodes)}
	case n.Entry.Status == health.Critical && !stale:
		return nodeFacts{gone: true, why: n.Entry.Reason}
	}
	return nodeFacts{why: n.Problem}
}

// sharedStore returns the snapshot store of a node, where another one that answers has the same.
func sharedStore(n fleet.Node, nodes map[api.NodeID]fleet.Node) string {
	for id, o := range nodes {
		if id != n.Self.ID && o.Connected && o.Self.SnapshotStore == n.Self.SnapshotStore {
			return n.Self.SnapshotStore
		}
	}
	return ""
}
