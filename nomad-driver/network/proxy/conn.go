package proxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// original returns where a redirected connection was to go.
func original(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var to netip.AddrPort
	var serr error
	err = raw.Control(func(fd uintptr) {
		const soOriginalDst = 80
		var m *unix.IPv6Mreq // large enough for a sockaddr_in
		if m, serr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); serr == nil {
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Multiaddr[4:8])), binary.BigEndian.Uint16(m.Multiaddr[2:4]))
		}
	})
	return to, errors.Join(err, serr)
}

// flow is one connection of a sandbox.
type flow struct {
	client *Client
	in     net.Conn // the sandbox's end
	to     netip.AddrPort
	hello  hello
	ended  chan struct{} // closed with it
	once   sync.Once

	mu   sync.Mutex
	out  net.Conn   // the other end, where the bytes are only carried
	name string     // that it was allowed by; empty: by its address
	addr netip.Addr // that it goes to
}

func (f *flow) close() {
	f.once.Do(func() {
		close(f.ended)
		_ = f.in.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.out != nil {
			_ = f.out.Close()
		}
	})
}

// joined notes what a connection is for, and its other end. It returns false where the flow has ended meanwhile.
func (f *flow) joined(name string, addr netip.Addr, out net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.name, f.addr, f.out = name, addr, out
	select {
	case <-f.ended:
		return false
	default:
		return true
	}
}

// allowedBy reports whether what the connection is for would be allowed now.
func (f *flow) allowedBy(p *policy.Policy) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.addr.IsValid() {
		return true // it is not decided yet
	}
	to := policy.Flow{Addr: f.addr, Proto: policy.TCP, Port: f.to.Port()}
	if f.name != "" {
		if !p.DecideName(f.name).Allow {
			return false
		}
		to.Names = []string{f.name}
	}
	return p.Decide(to).Allow
}

func (s *Server) accept(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // too many descriptors, as a rule
			case <-time.After(50 * time.Millisecond):
				continue
			case <-s.ctx.Done():
				return
			}
		}
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		c := s.client(from.Addr())
		if err != nil || c == nil || !enter(c.busy) {
			refuse(conn)
			continue
		}
		if !enter(s.busy) {
			<-c.busy
			refuse(conn)
			continue
		}
		s.wg.Go(func() {
			defer func() { <-s.busy; <-c.busy }()
			s.serve(c, conn)
		})
	}
}

// enter takes a place where one is free.
func enter(places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	default:
		return false
	}
}

// refuse closes a connection with a reset.
func refuse(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// serve carries one connection to its end.
func (s *Server) serve(c *Client, conn *net.TCPConn) {
	to, err := s.cfg.Original(conn)
	if err != nil {
		refuse(conn)
		return
	}
	f := &flow{client: c, in: conn, to: to, ended: make(chan struct{})}
	c.mu.Lock()
	c.flows[f] = true
	c.mu.Unlock()
	defer func() {
		f.close()
		c.mu.Lock()
		delete(c.flows, f)
		c.mu.Unlock()
	}()
	if s.ctx.Err() != nil {
		return
	}
	st, _ := c.current()
	if (to.Port() != 80 && to.Port() != 443) || !st.Policy.ByName() && len(st.Rules) == 0 {
		s.carry(f, "", nil) // nothing of it is looked at
		return
	}
	in := bufio.NewReaderSize(conn, maxHello)
	if conn.SetReadDeadline(time.Now().Add(helloTimeout)) != nil {
		return
	}
	first, err := in.Peek(1)
	switch {
	case err != nil && !isTimeout(err):
		return
	case err != nil: // it waits for the other end to speak
		s.unnamed(f, in)
	case first[0] == recordHandshake:
		s.serveTLS(f, in)
	case first[0] >= 'A' && first[0] <= 'Z':
		if conn.SetReadDeadline(time.Time{}) == nil {
			s.hand(f, &bufferedConn{Conn: conn, r: in})
		}
	default:
		s.unnamed(f, in)
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// unnamed carries a connection that says no name, where its address alone is allowed.
func (s *Server) unnamed(f *flow, in *bufio.Reader) {
	if f.in.SetReadDeadline(time.Time{}) != nil {
		return
	}
	s.carry(f, "", in)
}

// serveTLS decides by the name in a ClientHello.
func (s *Server) serveTLS(f *flow, in *bufio.Reader) {
	h, err := readHello(in)
	if err != nil {
		s.decided(f, "", policy.Decision{Layer: policy.LayerPlatform, Rule: "no ClientHello: " + err.Error()})
		return
	}
	f.hello = h
	if f.in.SetReadDeadline(time.Time{}) != nil {
		return
	}
	st, _ := f.client.current()
	if rule := ruleFor(st.Rules, h.name); rule != nil && !h.encrypted && s.cfg.Authority != nil {
		if d := st.Policy.DecideName(h.name); !d.Allow {
			s.decided(f, h.name, d)
			alert(f.in)
			return
		}
		s.hand(f, s.terminate(f, &bufferedConn{Conn: f.in, r: in}))
		return
	}
	s.carry(f, h.name, in)
}

// carry decides about a connection, by a name where it has one, connects, and copies both ways. in holds what was read already.
func (s *Server) carry(f *flow, name string, in *bufio.Reader) {
	ctx, cancel := context.WithTimeout(s.ctx, connectTimeout)
	defer cancel()
	out, d, err := f.client.connect(ctx, f, name)
	s.decided(f, name, d)
	if err != nil {
		s.log.Debug("cannot connect", "sandbox", f.client.id, "name", name, "to", f.to, "error", err)
	}
	if out == nil {
		if in != nil && f.hello.read {
			alert(f.in)
		}
		return
	}
	defer out.Close()
	if !f.joined(f.name, f.addr, out) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(f.in, out)
		halfClose(f.in)
	})
	if in != nil {
		if n := in.Buffered(); n > 0 {
			b, _ := in.Peek(n)
			if _, err := out.Write(b); err != nil {
				f.close()
			}
		}
	}
	_, _ = io.Copy(out, f.in)
	halfClose(out)
	back.Wait()
}

func halfClose(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
		return
	}
	_ = c.Close()
}

// alert tells a TLS client that it was not allowed: access_denied, RFC 8446, 6.
func alert(c net.Conn) {
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 49})
}

// decided notes and logs a decision.
func (s *Server) decided(f *flow, name string, d policy.Decision) {
	f.client.past.note(Decision{Time: time.Now(), Name: name, Flow: policy.Flow{Addr: f.to.Addr(), Proto: policy.TCP, Port: f.to.Port()}, Decision: d})
	s.log.Debug("proxied", "sandbox", f.client.id, "name", name, "to", f.to, "decision", d)
}

// connect decides where a connection goes and makes it. A name that is allowed is looked up again: the address that the sandbox chose
// does not count. Otherwise the address must be allowed without a name.
func (c *Client) connect(ctx context.Context, f *flow, name string) (net.Conn, policy.Decision, error) {
	st, _ := c.current()
	denied := policy.Decision{}
	if name != "" && !f.hello.encrypted {
		if d := st.Policy.DecideName(name); d.Allow {
			return c.connectName(ctx, f, st, name)
		}
		var byName bool
		if denied, byName = st.Policy.DeniesName(name); byName {
			return nil, denied, nil
		}
	}
	to := policy.Flow{Addr: f.to.Addr(), Proto: policy.TCP, Port: f.to.Port()}
	if f.to.Port() != 80 && f.to.Port() != 443 {
		to.Names = c.names(f.to.Addr()) // it went through the firewall's sets before there was a proxy for it
	}
	d := st.Policy.Decide(to)
	switch {
	case d.Allow:
	case f.hello.encrypted:
		return nil, policy.Decision{Layer: policy.LayerPlatform, Rule: "the name in the ClientHello is encrypted"}, nil
	case name == "" && st.Policy.ByName():
		d.Rule += " (the connection names no domain)"
		return nil, d, nil
	default:
		return nil, d, nil
	}
	out, err := c.dial(ctx, st, f.to.Addr().String(), []netip.Addr{f.to.Addr()}, f.to.Port())
	f.joined("", f.to.Addr(), nil)
	return out, d, err
}

// connectName connects to an allowed name.
func (c *Client) connectName(ctx context.Context, f *flow, st Settings, name string) (net.Conn, policy.Decision, error) {
	addrs, d, err := c.addressesOf(ctx, st, name, f.to.Port())
	if len(addrs) == 0 {
		return nil, d, err
	}
	out, err := c.dial(ctx, st, name, addrs, f.to.Port())
	f.joined(name, addrs[0], nil)
	return out, d, err
}

// addressesOf returns the addresses of a name that the policy lets the sandbox connect to.
func (c *Client) addressesOf(ctx context.Context, st Settings, name string, port uint16) ([]netip.Addr, policy.Decision, error) {
	found, err := c.lookup(ctx, name)
	if err != nil {
		return nil, policy.Decision{Layer: policy.LayerPlatform, Rule: "the name cannot be looked up"}, err
	}
	last := policy.Decision{Layer: policy.LayerPlatform, Rule: "the name has no addresses"}
	var good []netip.Addr
	for _, a := range found {
		d := st.Policy.Decide(policy.Flow{Addr: a, Names: []string{name}, Proto: policy.TCP, Port: port})
		if d.Allow {
			good = append(good, a)
		}
		if d.Allow || len(good) == 0 {
			last = d
		}
	}
	return good, last, nil
}

// bufferedConn is a connection of which some bytes were read already.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (b *bufferedConn) Read(p []byte) (int, error) {
	if b.r.Buffered() > 0 {
		return b.r.Read(p)
	}
	return b.Conn.Read(p)
}

// CloseWrite ends one direction.
func (b *bufferedConn) CloseWrite() error {
	if w, ok := b.Conn.(*net.TCPConn); ok {
		return w.CloseWrite()
	}
	return fmt.Errorf("close one direction: %w", errors.ErrUnsupported)
}
