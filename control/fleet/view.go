package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Node is what the fleet knows of a node.
type Node struct {
	Entry     health.Node
	Self      nodeapi.Node // as last heard; its ID is empty where it was never reached
	Connected bool         // its events are being followed, and the view is complete
	Since     time.Time    // of the last change of Connected
	Heard     time.Time    // last sign of life; zero: never
	Problem   string       // why it is not connected
	Status    Status       // how it is, with what operators have said; it does not flap
	Mark      Mark         // what they have said
	Sandboxes int          // in the view, stopped ones included
}

// Found is a sandbox on a node, as that node last reported it.
type Found struct {
	Node      api.NodeID
	Connected bool // the report is up to date
	Sandbox   nodeapi.Sandbox
}

// Nodes returns all nodes of the directory, by address.
func (f *Fleet) Nodes() []Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Node, 0, len(f.members))
	for _, m := range f.members {
		out = append(out, m.view())
	}
	slices.SortFunc(out, func(a, b Node) int { return cmp.Compare(a.Entry.Address, b.Entry.Address) })
	return out
}

// Node returns a node by its id, the connected one where two entries claim it.
func (f *Fleet) Node(id api.NodeID) (Node, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.byID(id); m != nil {
		return m.view(), true
	}
	return Node{}, false
}

// Client returns the client of a connected node, or an *api.Error with status 503. The fleet keeps and closes it.
func (f *Fleet) Client(id api.NodeID) (*nodeapi.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.byID(id)
	if m == nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "node %s is not known at the moment", id)
	}
	if !m.connected {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"node %s does not answer since %s: %s", id, m.since.UTC().Format(time.RFC3339), m.problem)
	}
	return m.client, nil
}

// Find returns every report of a sandbox, live ones first. There is more than one only where something went wrong.
func (f *Fleet) Find(id api.SandboxID) []Found {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Found
	for _, m := range f.members {
		if s, ok := m.sandboxes[id]; ok {
			out = append(out, Found{Node: m.self.ID, Connected: m.connected, Sandbox: s})
		}
	}
	slices.SortFunc(out, func(a, b Found) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Node, b.Node))
	})
	return out
}

func rank(f Found) int {
	if f.Sandbox.State == nodeapi.StateStopped {
		return 1
	}
	return 0
}

// Ended returns the last report of a sandbox that stopped on a node and was then removed there, as long as it is kept.
func (f *Fleet) Ended(node api.NodeID, id api.SandboxID) (nodeapi.Sandbox, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.byID(node)
	if m == nil {
		return nodeapi.Sandbox{}, false
	}
	s, ok := m.ended[id]
	return s, ok
}

// IDs returns the ids of all sandboxes in the view of any node.
func (f *Fleet) IDs() []api.SandboxID {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := map[api.SandboxID]struct{}{}
	for _, m := range f.members {
		for id := range m.sandboxes {
			ids[id] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(ids))
}

// Stale returns since when the directory cannot be reached; zero where it can.
func (f *Fleet) Stale() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stale
}

// WaitNodes returns once n nodes are connected, or with ctx's error.
func (f *Fleet) WaitNodes(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		changed, got, problem := f.changed, 0, ""
		for _, m := range f.members {
			if m.connected {
				got++
			} else {
				problem = fmt.Sprintf(": %s: %s", m.entry.Address, m.problem)
			}
		}
		f.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes are connected%s: %w", got, n, problem, ctx.Err())
		case <-changed:
		}
	}
}

// byID and view are called with the lock held.

func (f *Fleet) byID(id api.NodeID) *member {
	var found *member
	for _, m := range f.members {
		if m.self.ID == id && id != "" && (found == nil || m.connected) {
			found = m
		}
	}
	return found
}

func (m *member) view() Node {
	id := m.self.ID
	if id == "" {
		id = m.entry.ID
	}
	mark := m.f.cfg.Mark(id)
	return Node{
		Status: m.damper.show(m.f.cfg.Now()).marked(mark), Mark: mark,
		Entry: m.entry, Self: m.self, Connected: m.connected, Since: m.since, Heard: m.heard,
		Problem: m.problem, Sandboxes: len(m.sandboxes),
	}
}
