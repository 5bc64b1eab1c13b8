package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// handle takes one event into the view. An error ends the stream; where the view is no longer to be trusted, the next one
// starts with a sync.
func (m *member) handle(ctx context.Context, e nodeapi.Event) error {
	switch e.Type {
	case nodeapi.EventSync:
		m.sync(e)
		m.connect()
		return nil
	case nodeapi.EventBeat:
		m.beat(e.Health)
		return nil
	}
	if e.Epoch != m.epoch {
		return m.distrust("an event of epoch %s came in a stream of epoch %s", e.Epoch, m.epoch)
	}
	if e.Seq <= m.seq {
		return nil // seen before
	}
	if e.Seq != m.seq+1 {
		return m.distrust("events %d to %d are missing", m.seq+1, e.Seq-1)
	}
	m.seq = e.Seq
	switch {
	case e.Type == nodeapi.EventTemplate:
		return m.refreshTemplates(ctx)
	case e.Type == nodeapi.EventRemoved:
		m.remove(e.ID)
	case e.Sandbox != nil:
		m.put(*e.Sandbox)
	}
	return nil
}

// beat takes a sign of life, and what the node says of itself with it.
func (m *member) beat(h *nodeapi.Health) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.heard = time.Now()
	if h == nil {
		return
	}
	was := m.self.Healthy
	m.self.Healthy, m.self.Reason, m.self.Running, m.self.DiskFree, m.self.Checks = h.Healthy, h.Reason, h.Running, h.DiskFree, h.Checks
	m.see()
	if was != h.Healthy {
		m.f.wake()
	}
}

func (m *member) distrust(format string, args ...any) error {
	m.epoch, m.seq = "", 0
	return fmt.Errorf(format, args...)
}

// sync replaces the view by what the node says that exists.
func (m *member) sync(e nodeapi.Event) {
	next := make(map[api.SandboxID]nodeapi.Sandbox, len(e.Sandboxes))
	for _, s := range e.Sandboxes {
		next[s.ID] = s
	}
	m.f.mu.Lock()
	old := m.sandboxes
	m.sandboxes, m.epoch, m.seq, m.heard = next, e.Epoch, e.Seq, time.Now()
	node := m.self.ID
	for _, s := range next {
		m.f.report(node, s)
	}
	m.f.mu.Unlock()
	for id := range old {
		if _, ok := next[id]; !ok {
			m.f.cfg.OnChange(node, id)
		}
	}
	for id := range next {
		m.f.cfg.OnChange(node, id)
	}
}

func (m *member) put(s nodeapi.Sandbox) {
	m.f.mu.Lock()
	m.sandboxes[s.ID], m.heard = s, time.Now()
	node := m.self.ID
	m.f.report(node, s)
	m.f.mu.Unlock()
	m.f.cfg.OnChange(node, s.ID)
}

func (m *member) remove(id api.SandboxID) {
	m.f.mu.Lock()
	if last, ok := m.sandboxes[id]; ok && last.State == nodeapi.StateStopped {
		m.remember(last)
	}
	delete(m.sandboxes, id)
	m.heard = time.Now()
	node := m.self.ID
	m.f.mu.Unlock()
	m.f.cfg.OnChange(node, id)
}

// remember keeps the last report of a sandbox. Called with the lock held.
func (m *member) remember(last nodeapi.Sandbox) {
	if _, ok := m.ended[last.ID]; !ok {
		m.endedIDs = append(m.endedIDs, last.ID)
	}
	m.ended[last.ID] = last
	if len(m.endedIDs) > maxEnded {
		delete(m.ended, m.endedIDs[0])
		m.endedIDs = m.endedIDs[1:]
	}
}

// refreshTemplates asks for the node's templates after its store changed.
func (m *member) refreshTemplates(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.f.cfg.CallTimeout)
	defer cancel()
	self, err := m.client.Node(ctx)
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("list templates: %w", err)
	}
	m.f.mu.Lock()
	m.self.Templates, m.self.OwnTemplates, m.heard = self.Templates, self.OwnTemplates, time.Now()
	m.f.wake()
	node := m.self.ID
	m.f.mu.Unlock()
	m.f.cfg.OnChange(node, "")
	return nil
}
