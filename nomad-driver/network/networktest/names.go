package networktest

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"
)

// Names is a name server of a test's own.
type Names struct {
	Addr string // host:port, of UDP and TCP

	mu    sync.Mutex
	zone  map[string][]dns.RR // by name and type
	known map[string]bool
	asked map[string]int
}

// ServeNames serves names at an address of a namespace, of this one's loopback where ns is nil and the address has the port 0. A record is
// text as in a zone file.
func ServeNames(t testing.TB, ns *os.File, address string, records ...string) *Names {
	t.Helper()
	n := &Names{asked: map[string]int{}}
	n.Set(t, records...)
	var packets *net.UDPConn
	var streams net.Listener
	listen := func() (err error) { packets, streams, err = ListenBoth(address); return err }
	if ns == nil {
		must.NoError(t, listen())
	} else {
		must.NoError(t, In(ns, listen))
	}
	n.Addr = packets.LocalAddr().String()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: n}, {Listener: streams, Handler: n}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

// ListenBoth opens a UDP socket and a TCP listener at the same port, which may be 0: then one that both have free.
func ListenBoth(address string) (*net.UDPConn, net.Listener, error) {
	var last error
	for range 20 {
		packets, err := net.ListenPacket("udp4", address)
		if err != nil {
			return nil, nil, err
		}
		streams, err := net.Listen("tcp4", packets.LocalAddr().String())
		if err == nil {
			return packets.(*net.UDPConn), streams, nil //nolint:forcetypeassert // of that network
		}
		last = errors.Join(err, packets.Close())
	}
	return nil, nil, last
}

// Set replaces the records.
func (n *Names) Set(t testing.TB, records ...string) {
	t.Helper()
	zone, known := map[string][]dns.RR{}, map[string]bool{}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		must.NoError(t, err)
		name := strings.ToLower(rr.Header().Name)
		known[name] = true
		zone[key(name, rr.Header().Rrtype)] = append(zone[key(name, rr.Header().Rrtype)], rr)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.zone, n.known = zone, known
}

// Asked says how often a name and type were asked for.
func (n *Names) Asked(name string, qtype uint16) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[key(dns.Fqdn(name), qtype)]
}

func key(name string, qtype uint16) string { return name + " " + dns.TypeToString[qtype] }

// ServeDNS implements dns.Handler.
func (n *Names) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := new(dns.Msg)
	r.SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	qtype := q.Question[0].Qtype
	n.asked[key(name, qtype)]++
	if !n.known[name] {
		r.Rcode = dns.RcodeNameError
	}
	for range 20 { // aliases
		r.Answer = append(r.Answer, n.zone[key(name, qtype)]...)
		alias := n.zone[key(name, dns.TypeCNAME)]
		if len(alias) == 0 || qtype == dns.TypeCNAME {
			break
		}
		r.Answer = append(r.Answer, alias[0])
		name = strings.ToLower(alias[0].(*dns.CNAME).Target) //nolint:forcetypeassert // of that type
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		r.Truncate(size)
	}
	_ = w.WriteMsg(r)
}
