package fleet

import (
	"fmt"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// State says in a word how a node is.
type State string

// The states, the best first.
const (
	Healthy    State = "healthy"
	Degraded   State = "degraded"   // sandboxes can be made there, but something is wrong
	Draining   State = "draining"   // an operator wants it empty
	Connecting State = "connecting" // its events are not followed: what runs there goes on as far as anybody knows
	Unhealthy  State = "unhealthy"  // it can make no sandboxes, does not work, or an operator has said so
)

// Status is how a node is, why, and since when.
type Status struct {
	State  State
	Reason string // empty where it is healthy
	Since  time.Time
}

// Mark is what an operator has said about a node. It is shown at once, whatever the checks say.
type Mark struct {
	State  State // Draining or Unhealthy; empty: nothing
	Reason string
	By     string
	At     time.Time
}

// TakesWork reports whether new sandboxes may be made there.
func (s State) TakesWork() bool { return s == Healthy || s == Degraded }

func (s State) rank() int {
	switch s {
	case Healthy:
		return 0
	case Degraded:
		return 1
	case Draining:
		return 2
	case Connecting:
		return 3
	}
	return 4
}

// marked is a status under an operator's mark. What is worse than the mark is shown, since it says more.
func (s Status) marked(m Mark) Status {
	if m.State == "" || s.State.rank() > m.State.rank() {
		return s
	}
	out := Status{State: m.State, Reason: m.Reason, Since: m.At}
	if m.By != "" {
		out.Reason = strings.TrimSuffix("by "+m.By+": "+m.Reason, ": ")
	}
	return out
}

// now says what a member is at this moment, from its stream, its own word and the directory's checks. Called with the lock held.
func (m *member) now() (State, string) {
	critical := m.entry.Status == health.Critical
	switch {
	case !m.connected && critical && m.entry.Reason != "":
		return Unhealthy, m.entry.Reason
	case !m.connected && critical:
		return Unhealthy, "its health checks fail, and it does not answer: " + m.problem
	case !m.connected:
		return Connecting, m.problem
	case !m.self.Healthy:
		return Unhealthy, m.self.Reason
	case critical:
		return Unhealthy, m.entry.Reason
	}
	var whys []string
	state := Healthy
	for _, c := range m.self.Checks {
		switch c.Status {
		case nodeapi.CheckCritical:
			state = Unhealthy
		case nodeapi.CheckWarning:
			if state == Healthy {
				state = Degraded
			}
		default:
			continue
		}
		whys = append(whys, c.Name+": "+c.Output)
	}
	if len(whys) == 0 && m.entry.Reason != "" { // the directory knows of something that the node does not
		return Degraded, m.entry.Reason
	}
	return state, strings.Join(whys, "; ")
}

// see takes what a member is now into what is shown of it. Called with the lock held, after each change.
func (m *member) see() {
	state, reason := m.now()
	m.damper.see(state, reason, m.f.cfg.Now())
}

// A node that has got worse again and again has to be better for a while until that is believed.
const (
	flapWindow = 10 * time.Minute // in which worsenings count
	freeFalls  = 2                // of them that cost nothing: a daemon may be restarted
	firstHold  = 5 * time.Second  // after the next one, doubled with each
	longHold   = 2 * time.Minute
)

// damper keeps what is shown of a node from flapping: what is worse is shown at once, since no work should go there, what is better once
// it has lasted.
type damper struct {
	shown   Status
	better  Status // than what is shown, with the time from which on; no State: it is as shown
	last    State  // that was seen
	lastWhy string
	falls   []time.Time // the worsenings within the window, the oldest first
}

func (d *damper) see(state State, reason string, now time.Time) {
	d.settle(now)
	if d.last != "" && state.rank() > d.last.rank() {
		d.falls = append(d.falls, now)
	}
	d.last, d.lastWhy = state, reason
	switch {
	case state == d.shown.State:
		d.shown.Reason, d.better = reason, Status{}
	case d.shown.State == "" || state.rank() > d.shown.State.rank():
		d.shown, d.better = Status{State: state, Reason: reason, Since: now}, Status{}
	case d.better.State == state:
		d.better.Reason = reason
	default:
		d.better = Status{State: state, Reason: reason, Since: now}
	}
	d.settle(now)
}

// settle believes what is better once it has lasted.
func (d *damper) settle(now time.Time) {
	for len(d.falls) > 0 && now.Sub(d.falls[0]) >= flapWindow {
		d.falls = d.falls[1:]
	}
	if d.better.State != "" && now.Sub(d.better.Since) >= d.hold() {
		d.shown, d.better = d.better, Status{}
	}
}

// hold is how long what is better has to last.
func (d *damper) hold() time.Duration {
	n := len(d.falls) - freeFalls
	if n <= 0 {
		return 0
	}
	if n > 5 {
		return longHold
	}
	return min(firstHold<<(n-1), longHold)
}

// show returns what is to be shown now.
func (d *damper) show(now time.Time) Status {
	d.settle(now)
	out := d.shown
	if d.better.State != "" {
		out.Reason = fmt.Sprintf("%s for %s, but it got worse %d times in %s, so that has to last for %s",
			d.better.State, now.Sub(d.better.Since).Round(time.Second), len(d.falls), flapWindow, d.hold())
	}
	return out
}
