package state

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// TLS holds the settings of mutual TLS between control servers. Both are asked for each new connection, so that renewed
// certificates are used without a restart. Client must set ServerName to a name that only control servers' certificates
// carry, and Server must check the same of its clients: any other certificate of the same CA must not speak Raft.
type TLS struct {
	Server func() (*tls.Config, error)
	Client func() (*tls.Config, error)
	// Name returns the id of the server that a certificate is of. nil: certificates do not tell, and whoever has one may join by any id.
	Name func(*x509.Certificate) (string, error)
}

// streamLayer carries what servers say to each other over TCP, with mutual TLS where it is configured: Raft, and the requests that one has
// another answer. The first byte tells them apart: Raft's is the number of a call, HTTP's a letter. It keeps its connections, both ways, so
// that Close ends them: raft's transport leaves them open.
type streamLayer struct {
	net.Listener
	advertise net.Addr
	tls       *TLS
	log       hclog.Logger

	raft     chan net.Conn
	requests chan net.Conn
	done     chan struct{} // closed by Close
	sorting  sync.WaitGroup

	mu     sync.Mutex
	conns  map[*trackedConn]struct{}
	closed bool
}

const (
	// firstByteTime is how long a new connection may take for its handshake and its first byte.
	firstByteTime = 10 * time.Second
	// lastRaftByte is the greatest first byte that is taken for Raft's. Its calls are numbered from 0; methods of HTTP are letters.
	lastRaftByte = 0x1f
	// silence is how long another server may leave what was sent to it without a sign, before a request to it has failed.
	silence = 1500 * time.Millisecond
)

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

// Close implements net.Listener: it ends the listener and every connection. Closing twice is no error.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	if was {
		return nil
	}
	close(s.done)
	errs := []error{s.Listener.Close()}
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	s.sorting.Wait()
	return errors.Join(errs...)
}

var _ raft.StreamLayer = (*streamLayer)(nil)

func listen(cfg *Config) (*streamLayer, error) {
	l, err := net.Listen("tcp", cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("listen for raft on %s: %w", cfg.Bind, err)
	}
	s := &streamLayer{
		Listener: l, advertise: l.Addr(), tls: cfg.TLS, log: cfg.Logger,
		raft: make(chan net.Conn), requests: make(chan net.Conn), done: make(chan struct{}),
	}
	if cfg.Advertise != "" {
		s.advertise = address(cfg.Advertise)
	}
	if ip, ok := s.advertise.(*net.TCPAddr); ok && ip.IP.IsUnspecified() {
		_ = l.Close()
		return nil, fmt.Errorf("raft listens on %s, which others cannot reach: configure an address to advertise", ip)
	}
	s.sorting.Go(s.accept)
	return s, nil
}

// address is a host:port that is resolved when it is dialled.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// Addr implements net.Listener with the address that others dial.
func (s *streamLayer) Addr() net.Addr { return s.advertise }

// Accept implements net.Listener: it returns a connection that speaks Raft.
func (s *streamLayer) Accept() (net.Conn, error) { return s.next(s.raft) }

func (s *streamLayer) next(from <-chan net.Conn) (net.Conn, error) {
	select {
	case c := <-from:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// accept takes connections until the layer is closed. Each is sorted in a goroutine of its own: nobody waits for another's handshake.
func (s *streamLayer) accept() {
	for {
		raw, err := s.Listener.Accept()
		if err != nil {
			select {
			case <-s.done:
				return
			case <-time.After(50 * time.Millisecond): // such as no descriptor that is free
				s.log.Warn("connection of another server not accepted", "error", err)
				continue
			}
		}
		s.sorting.Go(func() {
			switch err := s.sort(raw); {
			case err == nil || errors.Is(err, net.ErrClosed):
			case errors.Is(err, io.EOF): // somebody has looked whether this server is here
				s.log.Debug("connection of another server without a word", "remote", raw.RemoteAddr().String())
			default:
				s.log.Warn("connection of another server refused", "remote", raw.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// sort brings a new connection to whom its first byte is for.
func (s *streamLayer) sort(raw net.Conn) error {
	c, err := s.track(raw)
	if err != nil {
		return err
	}
	if s.tls != nil {
		cfg, err := s.tls.Server()
		if err != nil {
			return errors.Join(fmt.Errorf("raft: TLS settings: %w", err), c.Close())
		}
		if cfg.ClientAuth != tls.RequireAndVerifyClientCert {
			return errors.Join(errors.New("raft: TLS settings do not ask for a client certificate"), c.Close())
		}
		c = tls.Server(c, cfg)
	}
	known := &sortedConn{Conn: c}
	_ = c.SetDeadline(time.Now().Add(firstByteTime)) // a connection that is closed fails at the read
	if _, err := c.Read(known.first[:]); err != nil {
		return errors.Join(fmt.Errorf("raft: first byte: %w", err), c.Close())
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return errors.Join(err, c.Close())
	}
	to := s.requests
	if known.first[0] <= lastRaftByte {
		to = s.raft
	}
	select {
	case to <- known:
		return nil
	case <-s.done:
		return errors.Join(net.ErrClosed, c.Close())
	}
}

// sortedConn is a connection whose first byte was looked at.
type sortedConn struct {
	net.Conn
	first [1]byte
	given bool // to the reader; of the goroutine that reads
}

// Read implements net.Conn.
func (c *sortedConn) Read(p []byte) (int, error) {
	if c.given || len(p) == 0 {
		return c.Conn.Read(p)
	}
	c.given = true
	return copy(p, c.first[:]), nil
}

// requestListener is the part of the layer that speaks HTTP.
type requestListener struct {
	*streamLayer
	once *sync.Once
	end  chan struct{}
}

// Accept implements net.Listener.
func (l requestListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.requests:
		return c, nil
	case <-l.done:
	case <-l.end:
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener. Raft goes on.
func (l requestListener) Close() error {
	l.once.Do(func() { close(l.end) })
	return nil
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.dial(ctx, &net.Dialer{}, string(addr))
}

// dialRequests connects for requests to another server. One that is gone, or cut off, is noticed within silence.
func (s *streamLayer) dialRequests(ctx context.Context, addr string) (net.Conn, error) {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}}
	return s.dial(ctx, d, addr)
}

func (s *streamLayer) dial(ctx context.Context, d *net.Dialer, addr string) (net.Conn, error) {
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if d.KeepAliveConfig.Enable {
		if err := dropSilent(raw); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
	}
	c, err := s.track(raw)
	if err != nil || s.tls == nil {
		return c, err
	}
	cfg, err := s.tls.Client()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raft: TLS settings: %w", err), c.Close())
	}
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("raft: TLS with %s: %w", addr, err), c.Close())
	}
	return t, nil
}

// dropSilent has the kernel break a connection whose other end acknowledges nothing.
func dropSilent(c net.Conn) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	}); err != nil {
		return err
	}
	return set
}
