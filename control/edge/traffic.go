package edge

import (
	"context"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Traffic is how many requests each sandbox has under way at an edge. Its zero value has none.
type Traffic struct {
	mu sync.Mutex
	of map[api.SandboxID]*underWay
}

type underWay struct {
	requests int
	none     chan struct{} // closed when the last has ended
}

func (t *Traffic) enter(id api.SandboxID, limit int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[api.SandboxID]*underWay{}
	}
	u := t.of[id]
	if u == nil {
		u = &underWay{none: make(chan struct{})}
		t.of[id] = u
	}
	if u.requests >= limit {
		return false
	}
	u.requests++
	return true
}

func (t *Traffic) leave(id api.SandboxID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.of[id]
	if u.requests--; u.requests == 0 {
		close(u.none)
		delete(t.of, id)
	}
}

// Await returns when no request to a sandbox is under way, or ctx ends. It keeps no new ones from coming: who calls it has the
// Sandboxes of the edge say before that the sandbox is paused, for which they wait.
func (t *Traffic) Await(ctx context.Context, id api.SandboxID) {
	t.mu.Lock()
	u := t.of[id]
	t.mu.Unlock()
	if u == nil {
		return
	}
	select {
	case <-u.none:
	case <-ctx.Done():
	}
}
