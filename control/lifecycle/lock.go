package lifecycle

import (
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
)

// locks serialises changes of one sandbox, so that its node hears of them in the order of the log.
type locks struct {
	mu   sync.Mutex
	held map[api.SandboxID]*lockEntry
}

type lockEntry struct {
	mu    sync.Mutex
	users int
}

// lock locks a sandbox; the function that it returns unlocks it.
func (l *locks) lock(id api.SandboxID) func() {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[api.SandboxID]*lockEntry{}
	}
	e, ok := l.held[id]
	if !ok {
		e = &lockEntry{}
		l.held[id] = e
	}
	e.users++
	l.mu.Unlock()
	e.mu.Lock()
	return func() {
		e.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(l.held, id)
		}
	}
}
