package resolver

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	tcpIdle    = 10 * time.Second // a TCP connection without a question
	tcpLife    = 2 * time.Minute
	tcpLargest = 1024 // bytes of a question; none that is asked is longer
)

// Serve answers what comes over a socket and a listener until Close, which closes both.
func (s *Server) Serve(packets *net.UDPConn, streams net.Listener) {
	s.close = append(s.close, packets.Close, streams.Close)
	s.wg.Go(func() { s.servePackets(packets) })
	s.wg.Go(func() { s.serveStreams(streams) })
}

func (s *Server) servePackets(conn *net.UDPConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		c := s.client(from.Addr())
		if c == nil {
			continue
		}
		if !enter(c.busy) {
			s.count(c, func(c *counters) *atomic.Uint64 { return &c.limited })
			continue
		}
		if !enter(s.busy) {
			<-c.busy
			s.count(c, func(c *counters) *atomic.Uint64 { return &c.limited })
			continue
		}
		packet := append([]byte(nil), b[:n]...)
		s.wg.Go(func() {
			defer func() { <-s.busy; <-c.busy }()
			if out := s.answer(s.ctx, c, packet, dns.MinMsgSize); out != nil {
				_, _ = conn.WriteToUDPAddrPort(out, from) // who is gone does not wait
			}
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

func (s *Server) serveStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
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
		if err != nil || c == nil || !enter(c.conns) {
			_ = conn.Close()
			continue
		}
		s.wg.Go(func() {
			defer func() { <-c.conns }()
			s.serveStream(conn, c)
		})
	}
}

// serveStream answers the questions of a connection, one after the other.
func (s *Server) serveStream(conn net.Conn, c *Client) {
	done := make(chan struct{})
	defer close(done)
	s.wg.Go(func() { // closes it when the server ends
		select {
		case <-s.ctx.Done():
		case <-done:
		}
		_ = conn.Close()
	})
	end := time.Now().Add(tcpLife)
	var head [2]byte
	for time.Now().Before(end) {
		if conn.SetDeadline(time.Now().Add(tcpIdle)) != nil {
			return
		}
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(head[:]))
		if size > tcpLargest {
			s.count(c, func(c *counters) *atomic.Uint64 { return &c.bad })
			return
		}
		packet := make([]byte, size)
		if _, err := io.ReadFull(conn, packet); err != nil {
			return
		}
		out := s.answer(s.ctx, c, packet, dns.MaxMsgSize)
		if out == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil { //nolint:gosec // bounded by MaxMsgSize
			return
		}
	}
}
