package fleet

import (
	"context"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Waiter waits for a node's report that a sandbox ran. It is made before the sandbox is placed, so that no report is
// missed, and closed in the end.
type Waiter struct {
	f     *Fleet
	id    api.SandboxID
	on    api.NodeID // reports of others do not count; empty: all do
	ready chan Found // holds the first report
}

// Await returns a waiter for a sandbox. A report that is in the view already counts.
func (f *Fleet) Await(id api.SandboxID) *Waiter { return f.AwaitOn(id, "") }

// AwaitOn is Await for the report of one node, whatever others have of the sandbox yet. Empty: of any.
func (f *Fleet) AwaitOn(id api.SandboxID, node api.NodeID) *Waiter {
	w := &Waiter{f: f, id: id, on: node, ready: make(chan Found, 1)}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters[id] = append(f.waiters[id], w)
	for _, m := range f.members {
		if s, ok := m.sandboxes[id]; ok && m.connected {
			f.report(m.self.ID, s)
		}
	}
	return w
}

// Ran returns the first report of the sandbox as running, or as stopped after it ran or could not; or ctx's error.
func (w *Waiter) Ran(ctx context.Context) (Found, error) {
	select {
	case r := <-w.ready:
		return r, nil
	case <-ctx.Done():
		return Found{}, context.Cause(ctx)
	}
}

// Close ends the waiting.
func (w *Waiter) Close() {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	rest := slices.DeleteFunc(w.f.waiters[w.id], func(o *Waiter) bool { return o == w })
	if len(rest) == 0 {
		delete(w.f.waiters, w.id)
		return
	}
	w.f.waiters[w.id] = rest
}

// report hands a report to those who wait for it. Called with the lock held.
func (f *Fleet) report(node api.NodeID, s nodeapi.Sandbox) {
	if s.State == nodeapi.StateStarting {
		return
	}
	for _, w := range f.waiters[s.ID] {
		if w.on != "" && w.on != node {
			continue
		}
		select {
		case w.ready <- Found{Node: node, Connected: true, Sandbox: s}:
		default: // it has one
		}
	}
}
