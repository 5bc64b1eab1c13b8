// Package resolver is the only name server that sandboxes reach: one for a node, which asks the servers of the operator.
//
// It owns its sockets and what it remembers of each sandbox's questions. Who asks is told by the address that the firewall wrote
// into the packet; whether a name may be known is policy's to say; which of the answers may be reached, and for how long, is the
// firewall's, through Sandbox.Pin. It keeps no answers: they would tell one sandbox what another one asked for. What a packet says is
// never trusted, whether it comes from a sandbox or from a server.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Defaults of Limits.
const (
	DefaultQueries = 50
	DefaultBytes   = 4 << 10
)

// Bounds of what the resolver does at the same time.
const (
	burstFactor  = 10   // of a second's worth, after a pause
	maxBusy      = 2048 // questions under way
	maxBusyEach  = 64   // of one sandbox
	maxConnsEach = 8    // TCP connections of one sandbox
	rememberEach = 256  // names of one sandbox
)

// Limits are what each sandbox may ask. A question carries data out, and an answer carries data in.
type Limits struct {
	Queries int // a second
	Bytes   int // a second: of the names that are asked for, and of answers other than addresses
}

// Config describes a Server.
type Config struct {
	// Upstreams are the servers that are asked, as host:port, in their order. Empty: those of the machine's resolv.conf, also when it
	// changes.
	Upstreams  []netip.AddrPort
	ResolvConf string // in place of /etc/resolv.conf
	// Dial connects to an upstream.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout is how long one upstream is waited for; 0: DefaultTimeout.
	Timeout time.Duration
	Limits  Limits
	Logger  hclog.Logger
}

// Server answers the sandboxes of a node. Its methods may be called from any goroutine.
type Server struct {
	cfg      Config
	log      hclog.Logger
	upstream *upstream
	busy     chan struct{}

	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	close []func() error

	mu      sync.RWMutex
	clients map[netip.Addr]*Client

	total counters
}

// New returns a server that serves nothing yet: Serve does.
func New(cfg Config) *Server {
	if cfg.Limits.Queries == 0 {
		cfg.Limits.Queries = DefaultQueries
	}
	if cfg.Limits.Bytes == 0 {
		cfg.Limits.Bytes = DefaultBytes
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	s := &Server{cfg: cfg, log: cfg.Logger, busy: make(chan struct{}, maxBusy), clients: map[netip.Addr]*Client{}}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = resolvConf
	}
	s.upstream = &upstream{fixed: cfg.Upstreams, dial: cfg.Dial, timeout: cfg.Timeout, file: cfg.ResolvConf}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Sandbox is one that may ask.
type Sandbox struct {
	ID     string // for the log
	Policy *policy.Policy
	// Pin lets the sandbox reach addresses for a time, as far as its policy allows the name, and returns those that the platform
	// lets it have at all.
	Pin func(name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error)
	// Private returns the addresses of a name of the sandbox's private networks. known says that nobody else is to be asked for it. May be nil.
	Private func(name string) (addrs []netip.Addr, known bool)
}

// Client is a sandbox as the resolver knows it.
type Client struct {
	id      string
	pin     func(name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error)
	private func(name string) (addrs []netip.Addr, known bool)
	policy  atomic.Pointer[policy.Policy]
	queries *rate.Limiter
	bytes   *rate.Limiter
	busy    chan struct{}
	conns   chan struct{}
	counts  counters
	memory  memory
}

// Attach lets the sandbox with an address ask from now on. Nobody else is answered.
func (s *Server) Attach(addr netip.Addr, sb Sandbox) *Client {
	c := &Client{
		id: sb.ID, pin: sb.Pin, private: sb.Private, busy: make(chan struct{}, maxBusyEach), conns: make(chan struct{}, maxConnsEach),
		queries: rate.NewLimiter(rate.Limit(s.cfg.Limits.Queries), burstFactor*s.cfg.Limits.Queries),
		bytes:   rate.NewLimiter(rate.Limit(s.cfg.Limits.Bytes), burstFactor*s.cfg.Limits.Bytes),
	}
	c.policy.Store(sb.Policy)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[addr] = c
	return c
}

// Detach forgets the sandbox with an address.
func (s *Server) Detach(addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, addr)
}

func (s *Server) client(addr netip.Addr) *Client {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.clients[addr.Unmap()]
}

// SetPolicy changes what the sandbox may ask for. Questions under way are answered by the old policy, and the firewall pins by the
// one it has.
func (c *Client) SetPolicy(p *policy.Policy) { c.policy.Store(p) }

// Counts says what became of questions.
type Counts struct {
	Queries uint64 // that came
	Denied  uint64 // by a policy
	Refused uint64 // answers that the platform does not let a sandbox have: rebinding
	Limited uint64 // too many
	Failed  uint64 // no upstream had an answer
	Bad     uint64 // packets that are no questions
}

type counters struct{ queries, denied, refused, limited, failed, bad atomic.Uint64 }

func (c *counters) read() Counts {
	return Counts{
		Queries: c.queries.Load(), Denied: c.denied.Load(), Refused: c.refused.Load(), Limited: c.limited.Load(),
		Failed: c.failed.Load(), Bad: c.bad.Load(),
	}
}

// count counts for the sandbox and for the node.
func (s *Server) count(c *Client, which func(*counters) *atomic.Uint64) {
	which(&c.counts).Add(1)
	which(&s.total).Add(1)
}

// Counts returns those of all sandboxes since the server was made.
func (s *Server) Counts() Counts { return s.total.read() }

// Counts returns those of the sandbox.
func (c *Client) Counts() Counts { return c.counts.read() }

// Names returns the names that the sandbox asked for, latest first: the last 256 different ones.
func (c *Client) Names() []Name { return c.memory.list() }

// ErrDenied is in the chain of Lookup's error where the policy, or the platform, does not let the sandbox have the answer.
var ErrDenied = errors.New("denied")

// Lookup finds the addresses of a name for a sandbox as a question of its own would, pins included. The name must be as
// policy.ParseName returns it.
func (s *Server) Lookup(ctx context.Context, c *Client, name string) ([]netip.Addr, error) {
	d := c.policy.Load().DecideName(name)
	c.memory.note(name, d)
	if !d.Allow {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.denied })
		return nil, fmt.Errorf("name %s: %w by %s: %s", name, ErrDenied, d.Layer, d.Rule)
	}
	found, err := s.addresses(ctx, c, name)
	if err != nil {
		return nil, fmt.Errorf("name %s: %w", name, err)
	}
	if len(found.good) == 0 && found.refused {
		return nil, fmt.Errorf("name %s: %w by %s: %s", name, ErrDenied, policy.LayerPlatform, ruleRebinding)
	}
	return found.good, nil
}

// Close ends the server and what is under way.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for _, c := range s.close {
		errs = append(errs, c())
	}
	s.wg.Wait()
	return errors.Join(errs...)
}
