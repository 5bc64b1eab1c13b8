package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// member is one entry of the directory, and what its node says. Fields below the mark are guarded by Fleet.mu.
type member struct {
	f       *Fleet
	address string // of the entry
	cancel  context.CancelFunc
	done    chan struct{}

	// mark
	entry     health.Node
	unlisted  time.Time    // since when the directory does not list it; zero: it does
	self      nodeapi.Node // as last heard; ID is empty before that
	client    *nodeapi.Client
	holds     bool // it speaks for the node: no other entry does until it lets go
	connected bool
	since     time.Time // of the last change of connected
	heard     time.Time // last sign of life
	problem   string    // why it is not connected
	damper    damper
	epoch     string
	seq       uint64
	sandboxes map[api.SandboxID]nodeapi.Sandbox
	ended     map[api.SandboxID]nodeapi.Sandbox // stopped ones that the node forgot, at most maxEnded
	endedIDs  []api.SandboxID                   // oldest first
}

// maxEnded is how many last reports are kept of sandboxes that a node forgot: enough for a burst of ends between two
// passes of the reconciler.
const maxEnded = 4096

func newMember(f *Fleet, entry health.Node) *member {
	m := &member{
		f: f, address: entry.Address, entry: entry, done: make(chan struct{}), since: time.Now(), problem: "not reached yet",
		sandboxes: map[api.SandboxID]nodeapi.Sandbox{},
		ended:     map[api.SandboxID]nodeapi.Sandbox{},
	}
	m.see()
	return m
}

// stays reports whether a member that the directory does not list is kept: it is there, as it says itself. Called with the lock held.
func (m *member) stays(elsewhere bool) bool {
	now := time.Now()
	switch {
	case elsewhere || m.unlisted.IsZero() && !m.connected:
		return false
	case m.unlisted.IsZero():
		m.unlisted = now
		m.entry.Status, m.entry.Reason = health.Unknown, "the directory does not list it any more"
		m.see()
		m.f.log.Warn("a node that is connected is not in the directory any more; it is kept for a while", "node", m.self.ID, "address", m.address)
	}
	return now.Sub(m.unlisted) < m.f.cfg.Unlisted
}

func (m *member) start(parent context.Context) {
	ctx, cancel := context.WithCancel(parent)
	m.cancel = cancel
	go func() {
		defer close(m.done)
		m.run(ctx)
	}()
}

func (m *member) stop() {
	m.cancel()
	<-m.done
}

// run keeps a connection until ctx ends. Every loss is followed by a new attempt, with growing pauses as long as none
// succeeds.
func (m *member) run(ctx context.Context) {
	defer m.hangUp("the fleet let it go")
	retry := m.f.cfg.RetryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := m.converse(ctx)
		if ctx.Err() != nil {
			return
		}
		m.hangUp(err.Error())
		if time.Since(began) > m.f.cfg.RetryMax {
			retry = m.f.cfg.RetryMin
		}
		sleep(ctx, retry/2+rand.N(retry/2+1)) // spread, so that a restart does not call all nodes at once
		retry = min(2*retry, m.f.cfg.RetryMax)
	}
}

// converse connects, checks the node and follows its events until something breaks. It never returns nil.
func (m *member) converse(ctx context.Context) error {
	client, err := m.dial()
	if err != nil {
		return err
	}
	self, err := m.greet(ctx, client)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat := time.AfterFunc(m.f.cfg.BeatTimeout, func() {
		cancel(fmt.Errorf("no sign of life for %s", m.f.cfg.BeatTimeout))
	})
	defer beat.Stop()
	events, err := client.Events(ctx, m.epoch, m.seq)
	if err != nil {
		return cause(ctx, err)
	}
	defer events.Close()
	if m.epoch == self.Epoch {
		m.connect() // it goes on where the view ends
	}
	for {
		e, err := events.Next()
		if err != nil {
			return cause(ctx, err)
		}
		beat.Reset(m.f.cfg.BeatTimeout)
		if err := m.handle(ctx, e); err != nil {
			return err
		}
	}
}

// greet asks who answers, and gives it what it needs.
func (m *member) greet(ctx context.Context, client *nodeapi.Client) (nodeapi.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, m.f.cfg.CallTimeout)
	defer cancel()
	self, err := client.Node(ctx)
	if err == nil {
		err = m.meet(self)
	}
	if err == nil {
		err = m.f.cfg.Greet(ctx, client, self)
	}
	return self, err
}

func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && ctx.Err() != nil {
		return c
	}
	return err
}

// meet checks what the node says of itself and remembers it.
func (m *member) meet(self nodeapi.Node) error {
	if self.ID == "" {
		return fmt.Errorf("the node at %s has no id", m.address)
	}
	if err := m.f.cfg.Check(self); err != nil {
		m.f.mu.Lock()
		m.self = self
		m.f.mu.Unlock()
		return err
	}
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	if m.entry.ID != "" && m.entry.ID != self.ID {
		return fmt.Errorf("node %s answers at the address of node %s", self.ID, m.entry.ID)
	}
	for _, other := range m.f.members {
		if other == m || other.self.ID != self.ID {
			continue
		}
		if other.holds {
			return fmt.Errorf("node %s answers at %s already", self.ID, other.address)
		}
		other.self = nodeapi.Node{} // it moved here: that view is of the past
		clear(other.sandboxes)
	}
	m.holds = true
	if m.self.ID != self.ID { // another node than before: nothing of the view is its own
		m.epoch, m.seq = "", 0
		clear(m.sandboxes)
	}
	m.self = self
	return nil
}

func (m *member) connect() {
	m.f.mu.Lock()
	m.heard = time.Now()
	was := m.connected
	if !was {
		m.connected, m.since, m.problem = true, m.heard, ""
		m.see()
		m.f.wake()
	}
	id := m.self.ID
	m.f.mu.Unlock()
	if !was {
		m.f.log.Info("node connected", "node", id, "address", m.address)
		m.f.cfg.OnChange(id, "")
	}
}

func (m *member) hangUp(problem string) {
	m.f.mu.Lock()
	was, news := m.connected, m.problem != problem
	if was {
		m.connected, m.since = false, time.Now()
	}
	m.problem, m.holds = problem, false
	m.see()
	if was || news {
		m.f.wake()
	}
	id, client := m.self.ID, m.client
	m.f.mu.Unlock()
	if client != nil {
		client.Close()
	}
	if was || news {
		m.f.log.Warn("node not connected", "node", id, "address", m.address, "problem", problem)
	}
	if was {
		m.f.cfg.OnChange(id, "")
	}
}

// dial returns the client of this entry. It is made once: calls that others make with it outlive a broken stream.
func (m *member) dial() (*nodeapi.Client, error) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	if m.client != nil {
		return m.client, nil
	}
	c, err := m.f.dial(m.entry)
	if err != nil {
		return nil, err
	}
	m.client = c
	return c, nil
}
