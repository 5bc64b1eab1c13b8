package proxy

import (
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Decision is what became of a connection, or of one request of it.
type Decision struct {
	Time time.Time
	Name string // that it was for, where it said so
	Flow policy.Flow
	policy.Decision
}

// past keeps the last decisions.
type past struct {
	mu   sync.Mutex
	ring []Decision
	next int
}

func (p *past) note(d Decision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ring) < rememberEach {
		p.ring = append(p.ring, d)
		return
	}
	p.ring[p.next] = d
	p.next = (p.next + 1) % rememberEach
}

func (p *past) list() []Decision {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.Concat(p.ring[p.next:], p.ring[:p.next])
	slices.Reverse(list)
	return list
}
