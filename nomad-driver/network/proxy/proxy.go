// Package proxy carries the connections of sandboxes that the firewall redirects: those to the web where a policy speaks of names, and all
// of TCP where a sandbox has an egress proxy.
//
// It reads what a connection is for, the name in a ClientHello or the host of each HTTP request, asks policy about it, looks
// the name up again instead of believing the sandbox's address, and joins the two ends. Where there are header rules for the name it ends
// TLS itself, with a certificate of the node's own authority, and adds the headers: the sandbox never has them. It owns its
// listener and the connections. Which sandbox a connection is of is told by the address that the firewall wrote.
package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Bounds of what the proxy carries at the same time.
const (
	maxConns     = 16 << 10
	maxConnsEach = 1024
	rememberEach = 64 // decisions of one sandbox
)

// Times.
const (
	helloTimeout   = 10 * time.Second // until a connection says what it is for
	connectTimeout = 15 * time.Second
	headerTimeout  = 30 * time.Second
	idleTimeout    = 2 * time.Minute // between two requests
)

// Config describes a Server.
type Config struct {
	// Dial connects from the host.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Original returns where a redirected connection was to go; nil: as the kernel says.
	Original  func(*net.TCPConn) (netip.AddrPort, error)
	Authority *Authority     // makes certificates for names with header rules
	Roots     *x509.CertPool // that servers behind header rules are checked with; nil: the machine's
	Logger    hclog.Logger
}

// Server carries the connections of a node's sandboxes. Its methods may be called from any goroutine.
type Server struct {
	cfg   Config
	log   hclog.Logger
	web   *http.Server
	queue *queue
	busy  chan struct{}

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
	l    *net.TCPListener

	mu      sync.RWMutex
	clients map[netip.Addr]*Client
}

// New returns a server that carries nothing yet: Serve does.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Original == nil {
		cfg.Original = original
	}
	s := &Server{cfg: cfg, log: cfg.Logger, busy: make(chan struct{}, maxConns), clients: map[netip.Addr]*Client{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.queue = newQueue()
	s.web = s.webServer()
	return s
}

// Serve carries what comes over a listener until Close, which closes it.
func (s *Server) Serve(l *net.TCPListener) {
	s.l = l
	s.wg.Go(func() { s.accept(l) })
	s.wg.Go(func() { _ = s.web.Serve(s.queue) }) // ends with Close
}

// Close ends the server and every connection.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	if s.l != nil {
		errs = append(errs, s.l.Close())
	}
	s.mu.RLock()
	for _, c := range s.clients {
		c.closeAll()
	}
	s.mu.RUnlock()
	errs = append(errs, s.web.Close())
	s.wg.Wait()
	return errors.Join(errs...)
}

// Settings are what a sandbox's connections are carried by.
type Settings struct {
	Policy *policy.Policy
	Rules  []Rule
	Egress *Egress // nil: from the node itself
}

// Rule adds headers to the requests for a domain.
type Rule struct {
	Domain  policy.Entry // of which Name is set
	Headers http.Header
	// Lacks are what its headers wait for: as long as there are any, requests for the domain are refused.
	Lacks []string
}

// Sandbox is one that may connect.
type Sandbox struct {
	ID       string // for the log
	Settings Settings
	// Lookup finds the addresses of a name as the sandbox would: only those that it may have.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Names returns the names that an address was found by.
	Names func(netip.Addr) []string
	// Priority is what packets that are sent in its place carry (SO_PRIORITY); 0: as any of the host's.
	Priority int
}

// Client is a sandbox as the proxy knows it.
type Client struct {
	server *Server
	id     string
	lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	names  func(netip.Addr) []string
	busy   chan struct{}
	past   past

	priority int

	mu       sync.Mutex
	settings Settings
	out      *http.Transport // replaced with the settings
	flows    map[*flow]bool
}

// Attach carries the connections of the sandbox with an address from now on. Nobody else's are.
func (s *Server) Attach(addr netip.Addr, sb Sandbox) *Client {
	c := &Client{
		server: s, id: sb.ID, lookup: sb.Lookup, names: sb.Names, settings: sb.Settings, busy: make(chan struct{}, maxConnsEach),
		flows: map[*flow]bool{}, priority: sb.Priority,
	}
	c.out = s.transport(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[addr] = c
	return c
}

// Detach ends the connections of the sandbox with an address.
func (s *Server) Detach(addr netip.Addr) {
	s.mu.Lock()
	c := s.clients[addr]
	delete(s.clients, addr)
	s.mu.Unlock()
	if c != nil {
		c.closeAll()
	}
}

func (s *Server) client(addr netip.Addr) *Client {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.clients[addr.Unmap()]
}

// Set changes what the sandbox's connections are carried by, and ends those that would not be made any more.
func (c *Client) Set(st Settings) {
	c.mu.Lock()
	old := c.out
	moved := !c.settings.Egress.equal(st.Egress)
	c.settings, c.out = st, c.server.transport(c)
	var gone []*flow
	for f := range c.flows {
		if moved || !f.allowedBy(st.Policy) {
			gone = append(gone, f)
		}
	}
	c.mu.Unlock()
	old.CloseIdleConnections()
	for _, f := range gone {
		f.close()
	}
}

func (c *Client) current() (Settings, *http.Transport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settings, c.out
}

func (c *Client) closeAll() {
	c.mu.Lock()
	flows := make([]*flow, 0, len(c.flows))
	for f := range c.flows {
		flows = append(flows, f)
	}
	out := c.out
	c.mu.Unlock()
	out.CloseIdleConnections()
	for _, f := range flows {
		f.close()
	}
}

// Decisions returns the last ones, latest first.
func (c *Client) Decisions() []Decision { return c.past.list() }

// tlsOut is how servers are spoken to.
func (s *Server) tlsOut() *tls.Config {
	return &tls.Config{RootCAs: s.cfg.Roots, MinVersion: tls.VersionTLS12}
}
