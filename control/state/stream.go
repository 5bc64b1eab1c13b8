package state

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// TLS holds the settings of mutual TLS between control servers. Both are asked for each new connection, so that renewed
// certificates are used without a restart. Client must set ServerName to a name that only control servers' certificates
// carry, and Server must check the same of its clients: any other certificate of the same CA must not speak Raft.
type TLS struct {
	Server func() (*tls.Config, error)
	Client func() (*tls.Config, error)
}

// streamLayer carries Raft over TCP, with mutual TLS where it is configured. It keeps its connections, both ways, so that
// Close ends them: raft's transport leaves them open.
type streamLayer struct {
	net.Listener
	advertise net.Addr
	tls       *TLS

	mu     sync.Mutex
	conns  map[*trackedConn]struct{}
	closed bool
}

// trackedConn tells its layer when it is closed.
type trackedConn struct {
	net.Conn
	layer *streamLayer
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// track keeps a connection, or closes it where the layer is closed.
func (s *streamLayer) track(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	if s.conns == nil {
		s.conns = map[*trackedConn]struct{}{}
	}
	t := &trackedConn{Conn: c, layer: s}
	s.conns[t] = struct{}{}
	return t, nil
}

// Close implements net.Listener: it ends the listener and every connection.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	errs := []error{s.Listener.Close()}
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func listen(cfg *Config) (*streamLayer, error) {
	l, err := net.Listen("tcp", cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("listen for raft on %s: %w", cfg.Bind, err)
	}
	s := &streamLayer{Listener: l, advertise: l.Addr(), tls: cfg.TLS}
	if cfg.Advertise != "" {
		s.advertise = address(cfg.Advertise)
	}
	if ip, ok := s.advertise.(*net.TCPAddr); ok && ip.IP.IsUnspecified() {
		_ = l.Close()
		return nil, fmt.Errorf("raft listens on %s, which others cannot reach: configure an address to advertise", ip)
	}
	return s, nil
}

// address is a host:port that is resolved when it is dialled.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// Addr implements net.Listener with the address that others dial.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// Accept implements net.Listener. The handshake happens at the first read, in the connection's own goroutine.
func (s *streamLayer) Accept() (net.Conn, error) {
	raw, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c, err := s.track(raw)
	if err != nil || s.tls == nil {
		return c, err
	}
	cfg, err := s.tls.Server()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raft: TLS settings: %w", err), c.Close())
	}
	if cfg.ClientAuth != tls.RequireAndVerifyClientCert {
		return nil, errors.Join(errors.New("raft: TLS settings do not ask for a client certificate"), c.Close())
	}
	return tls.Server(c, cfg), nil
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	raw, err := net.DialTimeout("tcp", string(addr), timeout)
	if err != nil {
		return nil, err
	}
	c, err := s.track(raw)
	if err != nil || s.tls == nil {
		return c, err
	}
	cfg, err := s.tls.Client()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raft: TLS settings: %w", err), c.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("raft: TLS with %s: %w", addr, err), c.Close())
	}
	return t, nil
}
