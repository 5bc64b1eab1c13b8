package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// FuzzAnswer checks that no packet breaks the server, that an answer fits, reads as one, and is to the question that was asked.
func FuzzAnswer(f *testing.F) {
	for _, q := range []func(*dns.Msg){
		func(m *dns.Msg) { m.SetQuestion("www.example.com.", dns.TypeA) },
		func(m *dns.Msg) { m.SetQuestion("localhost.", dns.TypeA); m.SetEdns0(4096, true) },
		func(m *dns.Msg) { m.SetQuestion(".", dns.TypeNS) },
		func(m *dns.Msg) { m.SetAxfr("example.com.") },
		func(m *dns.Msg) { m.SetUpdate("example.com.") },
	} {
		m := new(dns.Msg)
		q(m)
		b, err := m.Pack()
		must.NoError(f, err)
		f.Add(b)
	}
	s := New(Config{Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("nobody is there")
	}})
	c := s.Attach(loopback, Sandbox{Policy: policy.New(policy.Base{}), Pin: func(_ string, a []netip.Addr, _ time.Duration) ([]netip.Addr, error) { return a, nil }})
	f.Fuzz(func(t *testing.T, packet []byte) {
		out := s.answer(t.Context(), c, packet, dns.MinMsgSize)
		if out == nil {
			return
		}
		must.LessEq(t, udpSize, len(out))
		var m dns.Msg
		must.NoError(t, m.Unpack(out))
		must.True(t, m.Response)
		must.EqOp(t, packet[0], out[0])
		must.EqOp(t, packet[1], out[1])
	})
}

// FuzzUpstream checks that no answer of a server breaks what reads it, and that what it finds is of IPv4.
func FuzzUpstream(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("www.example.com.", dns.TypeA)
	m.Response = true
	for _, s := range []string{"www.example.com. 60 IN CNAME b.example.", "b.example. 5 IN A 198.51.100.1", "b.example. 5 IN AAAA ::1"} {
		rr, err := dns.NewRR(s)
		must.NoError(f, err)
		m.Answer = append(m.Answer, rr)
	}
	b, err := m.Pack()
	must.NoError(f, err)
	f.Add(b)
	f.Fuzz(func(t *testing.T, packet []byte) {
		var m dns.Msg
		if m.Unpack(packet) != nil {
			return
		}
		addrs, ttl := chain(&m, "www.example.com")
		must.LessEq(t, maxTTL, ttl)
		must.LessEq(t, maxAddresses, len(addrs))
		for _, a := range addrs {
			must.True(t, a.Is4())
		}
	})
}
