package resolver

import (
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Name is a name that a sandbox asked for.
type Name struct {
	Name     string
	Decision policy.Decision // of the last question
	Count    uint64
	Last     time.Time
}

// memory keeps the last names that a sandbox asked for.
type memory struct {
	mu    sync.Mutex
	names map[string]*Name
}

func (m *memory) note(name string, d policy.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names == nil {
		m.names = map[string]*Name{}
	}
	n := m.names[name]
	if n == nil {
		if len(m.names) >= rememberEach {
			m.forgetOldest()
		}
		n = &Name{Name: name}
		m.names[name] = n
	}
	n.Decision, n.Last = d, time.Now()
	n.Count++
}

// mark changes what was decided about a name that was noted.
func (m *memory) mark(name string, d policy.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.names[name]; n != nil {
		n.Decision = d
	}
}

func (m *memory) forgetOldest() {
	var oldest *Name
	for _, n := range m.names {
		if oldest == nil || n.Last.Before(oldest.Last) {
			oldest = n
		}
	}
	delete(m.names, oldest.Name)
}

func (m *memory) list() []Name {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Name, 0, len(m.names))
	for _, n := range m.names {
		list = append(list, *n)
	}
	slices.SortFunc(list, func(a, b Name) int { return b.Last.Compare(a.Last) })
	return list
}
