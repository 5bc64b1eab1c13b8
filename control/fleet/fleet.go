// Package fleet keeps a connection to every node that the directory lists, and what each node says that it has.
//
// It owns the connections, the event streams and the view in memory. It never changes anything on a node, and never
// decides what shall be there: that is for packages lifecycle and reconcile. DESIGN.md tells more.
package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Config says how the fleet reaches its nodes. Zero values mean the defaults.
type Config struct {
	Directory health.Directory // required
	// TLS returns the client's side of mutual TLS to a node, asked once for each entry of the directory: certificates that
	// are renewed come through its GetClientCertificate. nil: only nodes with a unix socket can be reached.
	TLS func(health.Node) (*tls.Config, error)
	// Check refuses nodes that this version cannot work with. nil: only the version of the node's API counts.
	Check func(nodeapi.Node) error
	// Greet is called with each new connection's node before it counts as connected, for at most CallTimeout. An error ends the connection. nil: nothing.
	Greet func(context.Context, *nodeapi.Client, nodeapi.Node) error
	// OnChange is called after the view of a sandbox changed, and with an empty sandbox id after a node's connection did.
	// It must return at once, and may not call the fleet.
	OnChange func(api.NodeID, api.SandboxID)
	// Mark returns what operators have said about a node. It is asked with every view, and may not call the fleet. nil: nothing.
	Mark   func(api.NodeID) Mark
	Logger hclog.Logger
	Now    func() time.Time // of statuses

	BeatTimeout time.Duration // without an event, until a node counts as gone; 15 s: three beats
	CallTimeout time.Duration // of a short call; 5 s
	RetryMin    time.Duration // before the first new attempt; 50 ms
	RetryMax    time.Duration // between later ones; 3 s
	// Unlisted is how long a node is kept that is connected and not in the directory any more; 1 min. A directory that has lost what it knew has the nodes back in seconds.
	Unlisted time.Duration
}

func (c *Config) defaults() {
	if c.Check == nil {
		c.Check = CheckAPIVersion
	}
	if c.Greet == nil {
		c.Greet = func(context.Context, *nodeapi.Client, nodeapi.Node) error { return nil }
	}
	if c.OnChange == nil {
		c.OnChange = func(api.NodeID, api.SandboxID) {}
	}
	if c.Mark == nil {
		c.Mark = func(api.NodeID) Mark { return Mark{} }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.BeatTimeout, 15*time.Second)
	set(&c.CallTimeout, 5*time.Second)
	set(&c.RetryMin, 50*time.Millisecond)
	set(&c.RetryMax, 3*time.Second)
	set(&c.Unlisted, time.Minute)
}

// Fleet is all nodes. It is safe for concurrent use.
type Fleet struct {
	cfg    Config
	log    hclog.Logger
	cancel context.CancelFunc
	wg     sync.WaitGroup // the directory's goroutine; it joins the members'

	mu      sync.Mutex
	members map[string]*member // by address
	stale   time.Time          // since when the directory is not reached; zero: it is
	waiters map[api.SandboxID][]*Waiter
	changed chan struct{} // closed at the next change of a node's connection
}

// Open starts to follow the directory. The caller closes the fleet.
func Open(cfg Config) (*Fleet, error) {
	if cfg.Directory == nil {
		return nil, errors.New("fleet: no directory of nodes")
	}
	cfg.defaults()
	ctx, cancel := context.WithCancel(context.Background())
	f := &Fleet{
		cfg: cfg, log: cfg.Logger, cancel: cancel,
		members: map[string]*member{},
		waiters: map[api.SandboxID][]*Waiter{},
		changed: make(chan struct{}),
	}
	f.wg.Go(func() { f.follow(ctx) })
	return f, nil
}

// Close ends all connections. Waiters stay until their contexts end.
func (f *Fleet) Close() {
	f.cancel()
	f.wg.Wait()
}

// follow keeps one member for each entry of the directory, until ctx ends.
func (f *Fleet) follow(ctx context.Context) {
	defer f.stopAll()
	index, retry := uint64(0), f.cfg.RetryMin
	var nodes []health.Node // as last listed
	var due time.Time       // when a member that is not listed is let go; zero: none is
	for ctx.Err() == nil {
		view, err := f.nodes(ctx, index, due)
		if errors.Is(err, errDue) {
			due = f.update(ctx, nodes)
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				f.log.Warn("directory of nodes does not answer", "error", err)
				f.setStale(time.Now())
			}
			sleep(ctx, retry)
			retry = min(2*retry, f.cfg.RetryMax)
			continue
		}
		index, retry = view.Index, f.cfg.RetryMin
		f.setStale(view.StaleSince)
		nodes = view.Nodes
		due = f.update(ctx, nodes)
	}
}

// errDue means that it is time to look at members that the directory does not list.
var errDue = errors.New("due")

// nodes asks the directory for what is newer than index, until the time due.
func (f *Fleet) nodes(ctx context.Context, index uint64, due time.Time) (health.View, error) {
	if due.IsZero() {
		return f.cfg.Directory.Nodes(ctx, index)
	}
	until, cancel := context.WithDeadlineCause(ctx, due, errDue)
	defer cancel()
	view, err := f.cfg.Directory.Nodes(until, index)
	if err != nil && errors.Is(context.Cause(until), errDue) {
		err = errDue
	}
	return view, err
}

func (f *Fleet) setStale(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.IsZero() || f.stale.IsZero() {
		f.stale = t
	}
}

// update starts members for new entries, ends those of entries that are gone, and tells the others what changed. A node that is connected stays for a while after its entry, unless
// it is listed elsewhere: next is when that is over for the first of them; zero: there is none.
func (f *Fleet) update(ctx context.Context, nodes []health.Node) (next time.Time) {
	f.mu.Lock()
	gone := make(map[string]*member, len(f.members))
	for a, m := range f.members {
		gone[a] = m
	}
	for _, n := range nodes {
		if m, ok := f.members[n.Address]; ok && (n.ID == "" || m.entry.ID == "" || m.entry.ID == n.ID) {
			m.entry, m.unlisted = n, time.Time{}
			m.see()
			delete(gone, n.Address)
		}
	}
	for a, m := range gone {
		elsewhere := slices.ContainsFunc(nodes, func(n health.Node) bool { return n.Address == a || n.ID != "" && n.ID == m.self.ID })
		if m.stays(elsewhere) {
			delete(gone, a)
			if over := m.unlisted.Add(f.cfg.Unlisted); next.IsZero() || over.Before(next) {
				next = over
			}
			continue
		}
		delete(f.members, a)
	}
	for _, n := range nodes {
		if _, ok := f.members[n.Address]; !ok {
			m := newMember(f, n)
			f.members[n.Address] = m
			m.start(ctx)
		}
	}
	f.wake()
	f.mu.Unlock()
	for _, m := range gone {
		m.stop()
	}
	f.cfg.OnChange("", "")
	return next
}

func (f *Fleet) stopAll() {
	f.mu.Lock()
	members := f.members
	f.members = map[string]*member{}
	f.mu.Unlock()
	for _, m := range members {
		m.stop()
	}
}

// wake tells those who wait for a change of a connection. Called with the lock held.
func (f *Fleet) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
