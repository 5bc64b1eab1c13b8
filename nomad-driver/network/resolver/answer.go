package resolver

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// maxTTL bounds how long an answer holds, and with it what it lets the sandbox reach.
const maxTTL = time.Hour

// privateTTL is how long the address of a private network's member is good for: it may end at any time.
const privateTTL = time.Second

const (
	maxAddresses = 64   // of one answer
	maxChain     = 16   // aliases of one answer
	udpSize      = 1232 // of the largest UDP message, which is not fragmented
)

// ruleRebinding is the rule of names whose answers are addresses that no sandbox may have.
const ruleRebinding = "the name's addresses are out of reach for every sandbox"

// forwarded are the types that are passed on as they are. Not among them are those of IPv6, which sandboxes do not have, and HTTPS and
// SVCB, whose keys would encrypt the name that a connection is for.
var forwarded = map[uint16]bool{
	dns.TypeCNAME: true, dns.TypeTXT: true, dns.TypeMX: true, dns.TypeSRV: true, dns.TypeNS: true, dns.TypeSOA: true, dns.TypePTR: true,
	dns.TypeCAA: true, dns.TypeNAPTR: true, dns.TypeTLSA: true, dns.TypeSSHFP: true, dns.TypeDS: true, dns.TypeDNSKEY: true,
}

// local are domains that no server outside may be asked about.
var local = []string{"local", "onion", "invalid", "localhost"}

// answer returns the answer to a packet of a sandbox, or nil where it deserves none. limit is the most that the way back carries.
func (s *Server) answer(ctx context.Context, c *Client, packet []byte, limit int) []byte {
	s.count(c, func(c *counters) *atomic.Uint64 { return &c.queries })
	var q dns.Msg
	if err := q.Unpack(packet); err != nil || q.Response {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.bad })
		if err == nil || len(packet) < 12 || packet[2]&0x80 != 0 {
			return nil // an answer to an answer could go on for ever
		}
		bad := &dns.Msg{MsgHdr: dns.MsgHdr{Id: uint16(packet[0])<<8 | uint16(packet[1]), Response: true, Rcode: dns.RcodeFormatError}}
		return pack(bad, limit)
	}
	r := new(dns.Msg)
	r.SetReply(&q)
	r.RecursionAvailable, r.Compress = true, true
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(udpSize, false)
		limit = max(limit, min(int(opt.UDPSize()), udpSize))
		if opt.Version() != 0 {
			r.Rcode = dns.RcodeBadVers
			return pack(r, limit)
		}
	}
	s.fill(ctx, c, &q, r)
	return pack(r, limit)
}

// pack returns a message of at most limit bytes, marked as truncated where it lost something.
func pack(m *dns.Msg, limit int) []byte {
	m.Truncate(limit)
	b, err := m.Pack()
	if err != nil {
		m.Answer, m.Extra, m.Rcode = nil, nil, dns.RcodeServerFailure
		if b, err = m.Pack(); err != nil {
			return nil
		}
	}
	return b
}

// fill decides and finds what the answer says.
func (s *Server) fill(ctx context.Context, c *Client, q, r *dns.Msg) {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
		return
	case len(q.Question) != 1:
		r.Rcode = dns.RcodeFormatError
		return
	case q.Question[0].Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
		return
	case !c.queries.Allow() || !c.bytes.AllowN(time.Now(), len(q.Question[0].Name)):
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.limited })
		explain(r, dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "too many questions")
		return
	}
	question := q.Question[0]
	name, err := policy.ParseName(question.Name)
	if err != nil || strings.HasPrefix(name, "*") {
		r.Rcode = dns.RcodeNameError
		return
	}
	if name == "localhost" {
		if question.Qtype == dns.TypeA {
			r.Answer = append(r.Answer, addressRecord(question.Name, netip.AddrFrom4([4]byte{127, 0, 0, 1}), maxTTL))
		}
		return
	}
	if c.private != nil {
		if addrs, known := c.private(name); known {
			for _, a := range addrs {
				if question.Qtype == dns.TypeA {
					r.Answer = append(r.Answer, addressRecord(question.Name, a, privateTTL))
				}
			}
			if len(addrs) == 0 {
				r.Rcode = dns.RcodeNameError
			}
			return
		}
	}
	if isLocal(name) {
		r.Rcode = dns.RcodeNameError
		return
	}
	d := c.policy.Load().DecideName(name)
	if !d.Allow || question.Qtype == dns.TypeA || forwarded[question.Qtype] {
		c.memory.note(name, d)
	}
	if !d.Allow {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.denied })
		s.log.Debug("name denied", "sandbox", c.id, "name", name, "layer", d.Layer, "rule", d.Rule)
		// A name that does not exist is not asked for again, as it would be after a refusal.
		explain(r, dns.RcodeNameError, dns.ExtendedErrorCodeFiltered, d.String())
		return
	}
	switch {
	case question.Qtype == dns.TypeA:
		s.fillAddresses(ctx, c, name, r)
	case forwarded[question.Qtype]:
		s.forward(ctx, c, name, r)
	case question.Qtype == dns.TypeANY || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR:
		r.Rcode = dns.RcodeNotImplemented
	}
}

// isLocal reports whether a name is one that only this machine could know.
func isLocal(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return last == name || slices.Contains(local, last)
}

// explain gives an answer its code and, where the sandbox understands that, the reason.
func explain(r *dns.Msg, rcode int, code uint16, text string) {
	r.Rcode = rcode
	if opt := r.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text[:min(len(text), 200)]})
	}
}

func (s *Server) fillAddresses(ctx context.Context, c *Client, name string, r *dns.Msg) {
	found, err := s.addresses(ctx, c, name)
	switch {
	case errors.Is(err, errNoName):
		r.Rcode = dns.RcodeNameError
	case err != nil:
		s.log.Debug("name cannot be looked up", "sandbox", c.id, "name", name, "error", err)
		explain(r, dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, "no name server has an answer")
	case len(found.good) == 0 && found.refused:
		explain(r, dns.RcodeNameError, dns.ExtendedErrorCodeBlocked, ruleRebinding)
	default:
		// One record for each address under the name itself: what aliases lead there is nobody's concern.
		for _, a := range found.good {
			r.Answer = append(r.Answer, addressRecord(r.Question[0].Name, a, found.ttl))
		}
	}
}

func addressRecord(name string, a netip.Addr, ttl time.Duration) dns.RR {
	return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}, A: a.AsSlice()}
}

// found is what a name leads to.
type found struct {
	good    []netip.Addr
	ttl     time.Duration
	refused bool // there were others
}

// addresses finds the addresses of a name and pins them.
func (s *Server) addresses(ctx context.Context, c *Client, name string) (found, error) {
	m, err := s.ask(ctx, c, name, dns.TypeA)
	if err != nil {
		return found{}, err
	}
	all, ttl := chain(m, name)
	if len(all) == 0 {
		return found{}, nil
	}
	good, err := c.pin(name, all, ttl)
	if err != nil {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.failed })
		return found{}, err
	}
	f := found{good: good, ttl: ttl, refused: len(good) < len(all)}
	if f.refused {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.refused })
		if len(good) == 0 {
			c.memory.mark(name, policy.Decision{Layer: policy.LayerPlatform, Rule: ruleRebinding})
		}
		s.log.Debug("answer with addresses out of reach", "sandbox", c.id, "name", name, "addresses", all)
	}
	return f, nil
}

// chain returns the addresses that an answer has for a name, by aliases that start at it, and how long they hold.
func chain(m *dns.Msg, name string) (addrs []netip.Addr, ttl time.Duration) {
	least := uint32(maxTTL / time.Second)
	owner := dns.Fqdn(name)
	for range maxChain {
		next := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, owner) {
				continue
			}
			switch rr := rr.(type) {
			case *dns.A:
				if a, ok := netip.AddrFromSlice(rr.A); ok && len(addrs) < maxAddresses && !slices.Contains(addrs, a.Unmap()) {
					addrs, least = append(addrs, a.Unmap()), min(least, h.Ttl)
				}
			case *dns.CNAME:
				next, least = rr.Target, min(least, h.Ttl)
			}
		}
		if len(addrs) > 0 || next == "" {
			break
		}
		owner = next
	}
	return addrs, time.Duration(least) * time.Second
}

// forward passes an answer of another kind on: its own records, and the aliases before them.
func (s *Server) forward(ctx context.Context, c *Client, name string, r *dns.Msg) {
	qtype := r.Question[0].Qtype
	m, err := s.ask(ctx, c, name, qtype)
	switch {
	case errors.Is(err, errNoName):
		r.Rcode = dns.RcodeNameError
		return
	case err != nil:
		explain(r, dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, "no name server has an answer")
		return
	}
	size := 0
	for _, rr := range m.Answer {
		if t := rr.Header().Rrtype; t == qtype || t == dns.TypeCNAME {
			r.Answer = append(r.Answer, rr)
			size += dns.Len(rr)
		}
	}
	if !c.bytes.AllowN(time.Now(), size) {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.limited })
		r.Answer = nil
		explain(r, dns.RcodeRefused, dns.ExtendedErrorCodeProhibited, "too much of names and texts")
	}
}

var errNoName = errors.New("no such name")

// ask asks the upstreams.
func (s *Server) ask(ctx context.Context, c *Client, name string, qtype uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(udpSize, false)
	r, err := s.upstream.exchange(ctx, m)
	if err != nil {
		s.count(c, func(c *counters) *atomic.Uint64 { return &c.failed })
		return nil, err
	}
	if r.Rcode == dns.RcodeNameError {
		return nil, errNoName
	}
	return r, nil
}
