package state

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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

// streamLayer carries Raft over TCP, with mutual TLS where it is configured.
type streamLayer struct {
	net.Listener
	advertise net.Addr
	tls       *TLS
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
	c, err := s.Listener.Accept()
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
	d := &net.Dialer{Timeout: timeout}
	if s.tls == nil {
		return d.Dial("tcp", string(addr))
	}
	cfg, err := s.tls.Client()
	if err != nil {
		return nil, fmt.Errorf("raft: TLS settings: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, "tcp", string(addr))
}
