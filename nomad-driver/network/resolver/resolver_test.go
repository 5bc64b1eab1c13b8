package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pins is what a firewall would hold.
type pins struct {
	mu   sync.Mutex
	held map[string][]netip.Addr
	ttl  map[string]time.Duration
	err  error
}

func (p *pins) pin(name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	good := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback() })
	if p.held == nil {
		p.held, p.ttl = map[string][]netip.Addr{}, map[string]time.Duration{}
	}
	p.held[name], p.ttl[name] = good, ttl
	return good, nil
}

func (p *pins) of(name string) ([]netip.Addr, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[name], p.ttl[name]
}

type rig struct {
	t      testing.TB
	server *Server
	names  *networktest.Names
	pins   pins
	client *Client
	addr   string
}

var loopback = netip.MustParseAddr("127.0.0.1")

// newRig serves 127.0.0.1 as if it were a sandbox.
func newRig(t testing.TB, spec policy.Spec, change func(*Config), records ...string) *rig {
	t.Helper()
	r := &rig{t: t, names: networktest.ServeNames(t, nil, "127.0.0.1:0", records...)}
	cfg := Config{Upstreams: []netip.AddrPort{netip.MustParseAddrPort(r.names.Addr)}, Timeout: 500 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	r.server = New(cfg)
	packets, streams, err := networktest.ListenBoth("127.0.0.1:0")
	must.NoError(t, err)
	r.addr = packets.LocalAddr().String()
	r.server.Serve(packets, streams)
	t.Cleanup(func() { must.NoError(t, r.server.Close()) })
	layer, err := policy.ParseLayer("sandbox", spec)
	must.NoError(t, err)
	r.client = r.server.Attach(loopback, Sandbox{ID: "s", Policy: policy.New(policy.Base{}, layer), Pin: r.pins.pin})
	return r
}

func (r *rig) ask(name string, qtype uint16, change func(*dns.Msg)) *dns.Msg {
	return r.over("udp", name, qtype, change)
}

func (r *rig) over(netw, name string, qtype uint16, change func(*dns.Msg)) *dns.Msg {
	r.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	if change != nil {
		change(m)
	}
	c := dns.Client{Net: netw, Timeout: 5 * time.Second}
	got, _, err := c.Exchange(m, r.addr)
	must.NoError(r.t, err)
	return got
}

func answers(m *dns.Msg) string {
	var list []string
	for _, rr := range m.Answer {
		list = append(list, strings.TrimPrefix(strings.ReplaceAll(rr.String(), "\t", " "), rr.Header().Name+" "))
	}
	return dns.RcodeToString[m.Rcode] + " " + strings.Join(list, ", ")
}

func reason(m *dns.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

func edns(size uint16) func(*dns.Msg) {
	return func(m *dns.Msg) { m.SetEdns0(size, true) }
}

func TestServer_answersWhatThePolicyAllows(t *testing.T) {
	r := newRig(t, policy.Spec{Allow: []string{"*.example.com", "alias.example.org"}, Deny: []string{policy.Everything}}, nil,
		"www.example.com. 120 IN A 198.51.100.1", "www.example.com. 60 IN A 198.51.100.2", "www.example.com. 60 IN AAAA 2001:db8::1",
		`www.example.com. 60 IN HTTPS 1 . ech="AAAA"`, "www.example.com. 60 IN TXT hello", "mail.example.com. 60 IN MX 10 mx.example.net.",
		"inside.example.com. 60 IN A 10.0.0.1", "both.example.com. 60 IN A 10.0.0.1", "both.example.com. 60 IN A 198.51.100.3",
		"meta.example.com. 60 IN A 169.254.169.254", "zero.example.com. 0 IN A 198.51.100.4",
		"alias.example.org. 300 IN CNAME a.cdn.example.", "a.cdn.example. 20 IN CNAME b.cdn.example.", "b.cdn.example. 100 IN A 198.51.100.9",
		"loop.example.com. 60 IN CNAME pool.example.com.", "pool.example.com. 60 IN CNAME loop.example.com.",
		"long.example.com. 99999 IN A 198.51.100.5", "evil.example.org. 60 IN A 198.51.100.6",
	)
	for _, c := range []struct {
		name, ask string
		qtype     uint16
		want      string
		reason    string
	}{
		{"addresses with the shorter time", "www.example.com", dns.TypeA, "NOERROR 60 IN A 198.51.100.1, 60 IN A 198.51.100.2", ""},
		{"case as it was asked", "WWW.Example.COM", dns.TypeA, "NOERROR 60 IN A 198.51.100.1, 60 IN A 198.51.100.2", ""},
		{"no IPv6", "www.example.com", dns.TypeAAAA, "NOERROR ", ""},
		{"no keys to hide names with", "www.example.com", dns.TypeHTTPS, "NOERROR ", ""},
		{"text", "www.example.com", dns.TypeTXT, `NOERROR 60 IN TXT "hello"`, ""},
		{"mail", "mail.example.com", dns.TypeMX, "NOERROR 60 IN MX 10 mx.example.net.", ""},
		{"aliases", "alias.example.org", dns.TypeA, "NOERROR 20 IN A 198.51.100.9", ""},
		{"a private address", "inside.example.com", dns.TypeA, "NXDOMAIN ", ruleRebinding},
		{"the metadata service", "meta.example.com", dns.TypeA, "NXDOMAIN ", ruleRebinding},
		{"a private address among others", "both.example.com", dns.TypeA, "NOERROR 60 IN A 198.51.100.3", ""},
		{"a bounded time", "long.example.com", dns.TypeA, "NOERROR 3600 IN A 198.51.100.5", ""},
		{"no time", "zero.example.com", dns.TypeA, "NOERROR 0 IN A 198.51.100.4", ""},
		{"aliases in a circle", "loop.example.com", dns.TypeA, "NOERROR ", ""},
		{"a name that is not there", "none.example.com", dns.TypeA, "NXDOMAIN ", ""},
		{"a name that is not allowed", "evil.example.org", dns.TypeA, "NXDOMAIN ", "denied by sandbox: deny 0.0.0.0/0"},
		{"a name that is not allowed, as text", "data.evil.example.org", dns.TypeTXT, "NXDOMAIN ", "denied by sandbox: deny 0.0.0.0/0"},
		{"an alias on the way is no name of its own", "b.cdn.example", dns.TypeA, "NXDOMAIN ", "denied by sandbox: deny 0.0.0.0/0"},
		{"a name of this machine", "printer.local", dns.TypeA, "NXDOMAIN ", ""},
		{"a name without a domain", "router", dns.TypeA, "NXDOMAIN ", ""},
		{"localhost", "localhost", dns.TypeA, "NOERROR 3600 IN A 127.0.0.1", ""},
		{"everything", "www.example.com", dns.TypeANY, "NOTIMP ", ""},
		{"a zone", "www.example.com", dns.TypeAXFR, "NOTIMP ", ""},
		{"a wildcard", "*.example.com", dns.TypeA, "NXDOMAIN ", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := r.ask(c.ask, c.qtype, edns(1232))
			must.EqOp(t, c.want, answers(m))
			must.EqOp(t, c.reason, reason(m))
			must.EqOp(t, dns.Fqdn(c.ask), m.Question[0].Name)
			must.EqOp(t, c.want, answers(r.over("tcp", c.ask, c.qtype, edns(1232))))
		})
	}
	addrs, ttl := r.pins.of("alias.example.org")
	must.Eq(t, []netip.Addr{netip.MustParseAddr("198.51.100.9")}, addrs)
	must.EqOp(t, 20*time.Second, ttl)
	_, ttl = r.pins.of("b.cdn.example")
	must.Zero(t, ttl)
	must.Zero(t, r.names.Asked("evil.example.org", dns.TypeA))
	must.Zero(t, r.names.Asked("data.evil.example.org", dns.TypeTXT))
	must.Zero(t, r.names.Asked("www.example.com", dns.TypeAAAA))
	counts := r.client.Counts()
	must.EqOp(t, 46, counts.Queries)
	must.EqOp(t, 6, counts.Denied)
	must.EqOp(t, 6, counts.Refused)
	last := r.client.Names()
	i := slices.IndexFunc(last, func(n Name) bool { return n.Name == "meta.example.com" })
	must.EqOp(t, ruleRebinding, last[i].Decision.Rule)
	must.False(t, last[i].Decision.Allow)
}

func TestServer_answersNobodyElse(t *testing.T) {
	r := newRig(t, policy.Spec{}, nil, "www.example.com. 60 IN A 198.51.100.1")
	must.EqOp(t, "NOERROR 60 IN A 198.51.100.1", answers(r.ask("www.example.com", dns.TypeA, nil)))
	r.server.Detach(loopback)
	m := new(dns.Msg)
	m.SetQuestion("www.example.com.", dns.TypeA)
	for _, netw := range []string{"udp", "tcp"} {
		c := dns.Client{Net: netw, Timeout: 300 * time.Millisecond}
		_, _, err := c.Exchange(m, r.addr)
		must.Error(t, err, must.Sprint(netw))
	}
}

func TestServer_changesItsMindWithThePolicy(t *testing.T) {
	r := newRig(t, policy.Spec{}, nil, "www.example.com. 60 IN A 198.51.100.1")
	must.EqOp(t, "NOERROR 60 IN A 198.51.100.1", answers(r.ask("www.example.com", dns.TypeA, nil)))
	off := false
	layer, err := policy.ParseLayer("sandbox", policy.Spec{Internet: &off})
	must.NoError(t, err)
	r.client.SetPolicy(policy.New(policy.Base{}, layer))
	must.EqOp(t, "NXDOMAIN ", answers(r.ask("www.example.com", dns.TypeA, nil)))
	_, err = r.server.Lookup(t.Context(), r.client, "www.example.com")
	must.ErrorIs(t, err, ErrDenied)
}

func TestServer_longAnswersGoOverTCP(t *testing.T) {
	var records []string
	for i := range 60 {
		records = append(records, fmt.Sprintf("many.example.com. 60 IN A 198.51.100.%d", i+1))
	}
	r := newRig(t, policy.Spec{}, nil, records...)
	for _, c := range []struct {
		name   string
		change func(*dns.Msg)
		limit  int
	}{{"plain", nil, 512}, {"with EDNS", edns(1100), 1100}, {"with more than fits", edns(4096), 1232}, {"with less than there is", edns(100), 512}} {
		m := r.ask("many.example.com", dns.TypeA, c.change)
		if len(m.Answer) < 60 {
			must.True(t, m.Truncated, must.Sprint(c.name))
		}
		m.Compress = true
		must.LessEq(t, c.limit, m.Len(), must.Sprint(c.name))
	}
	must.Len(t, 60, r.over("tcp", "many.example.com", dns.TypeA, nil).Answer)
	// What the sandbox did not get told is pinned as well: it asks again over TCP, and may have it.
	addrs, _ := r.pins.of("many.example.com")
	must.Len(t, 60, addrs)
}

func TestServer_limitsQuestionsAndBytes(t *testing.T) {
	long := strings.Repeat("x", 60)
	r := newRig(t, policy.Spec{}, func(c *Config) { c.Limits = Limits{Queries: 2, Bytes: 30} }, "www.example.com. 60 IN A 198.51.100.1")
	limited := 0
	for range 60 {
		if m := r.ask("www.example.com", dns.TypeA, edns(1232)); m.Rcode == dns.RcodeRefused {
			must.EqOp(t, "too many questions", reason(m))
			limited++
		}
	}
	must.Greater(t, 10, limited)
	// A tunnel: data in names.
	r = newRig(t, policy.Spec{}, func(c *Config) { c.Limits = Limits{Queries: 1000, Bytes: 100} })
	sent := 0
	for i := range 100 {
		name := fmt.Sprintf("%s.%s.%d.t.example.com", long, long, i)
		if r.ask(name, dns.TypeTXT, nil).Rcode != dns.RcodeRefused {
			sent += len(name)
		}
	}
	must.Less(t, 5000, sent)
	must.Positive(t, r.client.Counts().Limited)
}

func TestServer_refusesWhatIsNoQuestion(t *testing.T) {
	r := newRig(t, policy.Spec{}, nil, "www.example.com. 60 IN A 198.51.100.1")
	m := r.ask("www.example.com", dns.TypeA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate })
	must.EqOp(t, dns.RcodeNotImplemented, m.Rcode)
	m = r.ask("version.bind", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
	must.EqOp(t, dns.RcodeRefused, m.Rcode)
	m = r.ask("www.example.com", dns.TypeA, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
	must.EqOp(t, dns.RcodeFormatError, m.Rcode)
	m = r.ask("www.example.com", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) })
	must.EqOp(t, dns.RcodeBadVers, m.Rcode)
	must.Nil(t, r.server.answer(t.Context(), r.client, make([]byte, 5), 512))
	must.Nil(t, r.server.answer(t.Context(), r.client, append([]byte{1, 2, 0x80}, make([]byte, 9)...), 512)) // an answer
	out := r.server.answer(t.Context(), r.client, []byte{7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63}, 512)
	must.EqOp(t, 7, out[0])
	must.EqOp(t, 9, out[1])
	must.EqOp(t, dns.RcodeFormatError, int(out[3]&15))
}

func TestServer_failsClosedWherePinsDo(t *testing.T) {
	r := newRig(t, policy.Spec{}, nil, "www.example.com. 60 IN A 198.51.100.1")
	r.pins.err = errors.New("no more")
	must.EqOp(t, "SERVFAIL ", answers(r.ask("www.example.com", dns.TypeA, nil)))
}

func TestUpstream_asksTheNextOneAndStaysThere(t *testing.T) {
	silent, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must.NoError(t, err)
	defer silent.Close()
	var asked []string
	var mu sync.Mutex
	r := newRig(t, policy.Spec{}, func(c *Config) {
		c.Upstreams = append([]netip.AddrPort{netip.MustParseAddrPort(silent.LocalAddr().String())}, c.Upstreams...)
		c.Timeout = 100 * time.Millisecond
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			asked = append(asked, address)
			mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	}, "www.example.com. 60 IN A 198.51.100.1")
	for range 3 {
		must.EqOp(t, "NOERROR 60 IN A 198.51.100.1", answers(r.ask("www.example.com", dns.TypeA, nil)))
	}
	must.Eq(t, []string{silent.LocalAddr().String(), r.names.Addr, r.names.Addr, r.names.Addr}, asked)
}

func TestUpstream_noServerIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	must.NoError(t, os.WriteFile(file, []byte("# nobody\noptions x\n"), 0o600))
	r := newRig(t, policy.Spec{}, func(c *Config) { c.Upstreams, c.ResolvConf = nil, file })
	m := r.ask("www.example.com", dns.TypeA, edns(1232))
	must.EqOp(t, "SERVFAIL ", answers(m))
	_, err := r.server.Lookup(t.Context(), r.client, "www.example.com")
	must.ErrorContains(t, err, "no name server is known")
}

func TestParseServers_readsWhatIsThere(t *testing.T) {
	got := parseServers("# c\nnameserver 10.0.0.1\nnameserver ::1\nsearch x\nnameserver\nnameserver what\n  nameserver\t9.9.9.9 # quad\n")
	must.Eq(t, []netip.AddrPort{
		netip.MustParseAddrPort("10.0.0.1:53"), netip.MustParseAddrPort("[::1]:53"), netip.MustParseAddrPort("9.9.9.9:53"),
	}, got)
}

func TestMemory_keepsTheLast(t *testing.T) {
	var m memory
	for i := range rememberEach + 10 {
		m.note(fmt.Sprintf("n%d.example", i), policy.Decision{Allow: true})
	}
	m.note("n20.example", policy.Decision{})
	list := m.list()
	must.Len(t, rememberEach, list)
	must.EqOp(t, "n20.example", list[0].Name)
	must.EqOp(t, 2, list[0].Count)
}
