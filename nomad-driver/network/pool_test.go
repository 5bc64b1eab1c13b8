package network

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func TestSlots_reachOutsideAsTheHostAndLookAlikeInside(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	serve(t, w.outside, outsideAddr+":80")
	a, b := w.take(p), w.take(p)
	must.NotEqOp(t, a.Addr, b.Addr)
	for _, s := range []*Slot{a, b} {
		for _, netw := range []string{"tcp4", "udp4"} {
			got, err := ask(s.Namespace(), netw, outsideAddr+":80")
			must.NoError(t, err, must.Sprint(netw))
			must.EqOp(t, hostAddr, got)
		}
		must.NoError(t, inNamespace(s.Namespace(), func() error {
			link, err := netlink.LinkByName(InnerLink)
			must.NoError(t, err)
			list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			must.NoError(t, err)
			must.Len(t, 1, list)
			must.EqOp(t, Inner.String(), list[0].IP.String())
			return nil
		}))
	}
}

// The table of who reaches whom, by real connections.
func TestPolicy_whoReachesWhom(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(func(c *Config) { c.Open = []netip.Prefix{netip.MustParsePrefix("192.168.5.0/24")} }))
	for _, a := range append([]string{outsideAddr}, elsewhere...) {
		serve(t, w.outside, a+":80")
		serve(t, w.outside, a+":443")
	}
	serve(t, w.outside, "8.8.8.8:53")
	serve(t, w.host, hostAddr+":4646")
	serve(t, w.host, "127.0.0.1:4646")
	serve(t, w.host, p.Self().String()+":53")
	serve(t, w.host, p.Self().String()+":8200")
	neighbour := w.take(p)
	serve(t, neighbour.Namespace(), "0.0.0.0:80")

	internet := false
	policies := map[string]*policy.Policy{
		"open":   policy.New(p.Base()),
		"closed": policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Internet: &internet})),
		"one address": policy.New(p.Base(), spec(t, "sandbox", policy.Spec{
			Allow: []string{"198.51.100.1", "169.254.169.254", "10.0.0.0/8"}, Deny: []string{policy.Everything},
		})),
		"one port":     policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Internet: &internet, Allow: []string{"tcp://198.51.100.0/24:443"}})),
		"one denied":   policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Deny: []string{"198.51.100.1"}})),
		"tenant above": policy.New(p.Base(), spec(t, "tenant", policy.Spec{Deny: []string{"198.51.100.0/24"}}), spec(t, "sandbox", policy.Spec{Allow: []string{"198.51.100.1"}})),
		"tenant below": policy.New(p.Base(), spec(t, "tenant", policy.Spec{Internet: &internet, Allow: []string{"198.51.100.0/24"}}), spec(t, "sandbox", policy.Spec{Deny: []string{"198.51.100.2"}})),
	}
	all := []string{"open", "closed", "one address", "one port", "one denied", "tenant above", "tenant below"}
	for _, c := range []struct {
		netw, to string
		reached  []string // the policies under which it is
	}{
		{"tcp4", outsideAddr + ":80", []string{"open", "one denied", "tenant above"}},
		{"udp4", outsideAddr + ":80", []string{"open", "one denied", "tenant above"}},
		{"tcp4", "198.51.100.1:80", []string{"open", "one address", "tenant below"}},
		{"tcp4", "198.51.100.1:443", []string{"open", "one address", "one port", "tenant below"}},
		{"udp4", "198.51.100.1:443", []string{"open", "one address", "tenant below"}},
		{"tcp4", "198.51.100.2:443", []string{"open", "one port", "one denied"}},
		{"tcp4", "169.254.169.254:80", nil},
		{"tcp4", "10.9.9.9:80", nil},
		{"tcp4", "172.16.7.7:80", nil},
		{"tcp4", "100.64.3.3:80", nil},
		{"tcp4", "192.168.5.5:80", []string{"open", "one denied", "tenant above"}}, // opened by the operator
		{"udp4", "8.8.8.8:53", nil},
		{"tcp4", "8.8.8.8:443", []string{"open", "one denied", "tenant above"}},
		{"tcp4", hostAddr + ":4646", nil},
		{"tcp4", neighbour.Addr.String() + ":80", nil},
		{"tcp4", p.Self().String() + ":8200", nil},
		{"tcp4", Gateway.String() + ":8200", nil},
		{"tcp4", Gateway.String() + ":53", all},
		{"udp4", Gateway.String() + ":53", all},
	} {
		t.Run(c.netw+" "+c.to, func(t *testing.T) {
			for _, name := range all {
				s := w.take(p)
				_, err := p.Apply(s, policies[name])
				must.NoError(t, err)
				_, err = ask(s.Namespace(), c.netw, c.to)
				want := false
				for _, r := range c.reached {
					want = want || r == name
				}
				must.EqOp(t, want, err == nil, must.Sprintf("policy %q: %v", name, err))
				to := netip.MustParseAddrPort(c.to)
				f := policy.Flow{Addr: to.Addr(), Proto: policy.TCP, Port: to.Port()}
				if c.netw == "udp4" {
					f.Proto = policy.UDP
				}
				must.EqOp(t, want, policies[name].Decide(f).Allow, must.Sprintf("policy %q explains otherwise: %s", name, policies[name].Decide(f)))
				if !want {
					denied, err := p.Firewall().Denied(s.Firewall())
					must.NoError(t, err)
					must.SliceNotEmpty(t, denied)
				}
				must.NoError(t, p.Give(s))
			}
		})
	}
}

func TestApply_cutsWhatItForbidsAndSparesTheRest(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	s := w.take(p)
	serve(t, w.outside, "198.51.100.1:81")
	far, near := stream(t, w, s, "198.51.100.1:80"), stream(t, w, s, "198.51.100.2:80")
	far.flows(t)
	near.flows(t)
	start := time.Now()
	cut, err := p.Apply(s, policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Deny: []string{"198.51.100.1"}})))
	must.NoError(t, err)
	must.EqOp(t, 1, cut)
	far.ends(t)
	must.Less(t, time.Second, time.Since(start))
	near.flows(t)
	near.flows(t)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:81")
	must.Error(t, err)
	// And back: what was denied is allowed again.
	_, err = p.Apply(s, policy.New(p.Base()))
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:81")
	must.NoError(t, err)
}

func TestPin_letsNamesThroughForTheirTime(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	serve(t, w.outside, "198.51.100.1:5433")
	serve(t, w.outside, "198.51.100.1:5432")
	s := w.take(p)
	pol := policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Allow: []string{"tcp://*.example.com:5432"}, Deny: []string{policy.Everything}}))
	_, err := p.Apply(s, pol)
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:5432")
	must.Error(t, err)

	good, err := p.Firewall().Pin(s.Firewall(), "www.example.com", addrs("198.51.100.1", "10.9.9.9", "::1", "169.254.169.254"), time.Minute)
	must.NoError(t, err)
	must.Eq(t, addrs("198.51.100.1"), good) // the rest is rebinding
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:5432")
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:5433")
	must.Error(t, err)
	must.Eq(t, []string{"www.example.com"}, p.Firewall().Names(s.Firewall(), netip.MustParseAddr("198.51.100.1")))

	_, err = p.Firewall().Pin(s.Firewall(), "other.example.org", addrs("198.51.100.2"), time.Minute)
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.2:5432")
	must.Error(t, err)

	// A pin outlives a new policy that allows the name, and goes with one that does not.
	_, err = p.Apply(s, policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Allow: []string{"www.example.com"}, Deny: []string{policy.Everything}})))
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:5433")
	must.NoError(t, err)
	_, err = p.Apply(s, policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Allow: []string{"example.net"}, Deny: []string{policy.Everything}})))
	must.NoError(t, err)
	_, err = ask(s.Namespace(), "tcp4", "198.51.100.1:5433")
	must.Error(t, err)
}

func TestPool_slotsAreTakenAndGivenBackWithoutALeak(t *testing.T) {
	w := newWorld(t)
	p := w.pool(func(c *Config) { c.Max = 8 })
	rounds := 300
	if n, err := strconv.Atoi(os.Getenv("SOULBOX_SOAK")); err == nil {
		rounds = n
	}
	files := openFiles(t)
	for range rounds {
		must.NoError(t, p.Give(w.take(p)))
	}
	var held []*Slot
	for range 8 {
		held = append(held, w.take(p))
	}
	_, err := p.Take(t.Context())
	must.ErrorIs(t, err, ErrExhausted)
	for _, s := range held {
		must.NoError(t, p.Give(s))
	}
	must.NoError(t, p.Close())
	must.NoError(t, p.Remove())
	must.LessEq(t, files, openFiles(t), must.Sprint("descriptors"))
	must.NoError(t, inNamespace(w.host, func() error {
		links, err := netlink.LinkList()
		must.NoError(t, err)
		must.Len(t, 2, links, must.Sprint("beside lo and the way out there are interfaces"))
		list, err := netlink.AddrList(nil, netlink.FAMILY_V4)
		must.NoError(t, err)
		must.Len(t, 2, list)
		return nil
	}))
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(entries)
}

func TestPool_findsItsSlotsAfterTheDaemonIsGone(t *testing.T) {
	w := newWorld(t)
	first := w.pool(nil)
	s := w.take(first)
	other := w.take(first) // of a sandbox without a record
	_, err := first.Apply(s, policy.New(first.Base(), spec(t, "sandbox", policy.Spec{Allow: []string{"198.51.100.2"}, Deny: []string{policy.Everything}})))
	must.NoError(t, err)
	running := stream(t, w, s, "198.51.100.2:80")
	running.flows(t)
	ns, err := os.Open(procFD(s.Namespace()))
	must.NoError(t, err)
	defer ns.Close()
	ns2, err := os.Open(procFD(other.Namespace()))
	must.NoError(t, err)
	defer ns2.Close()
	must.NoError(t, first.Close()) // as a daemon's end does: what is in use stays

	running.flows(t) // nobody is there, and the kernel carries it
	_, err = ask(ns, "tcp4", "198.51.100.1:80")
	must.Error(t, err)

	p := w.closing(func() *Pool {
		p, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Ahead: 2, Quiet: 10 * time.Millisecond})
		must.NoError(t, err)
		return p
	}())
	must.EqOp(t, first.Range(), p.Range())
	running.flows(t)
	again, err := p.Recover(s.Ref())
	must.NoError(t, err)
	must.EqOp(t, s.Addr, again.Addr)
	_, err = p.Recover(s.Ref())
	must.Error(t, err)
	removed, err := p.Sweep()
	must.NoError(t, err)
	must.Positive(t, removed)
	p.Start()
	_, err = ask(ns2, "tcp4", "198.51.100.2:80")
	must.Error(t, err) // its link is gone
	running.flows(t)
	cut, err := p.Apply(again, policy.New(p.Base(), spec(t, "sandbox", policy.Spec{Deny: []string{"198.51.100.2"}})))
	must.NoError(t, err)
	must.EqOp(t, 1, cut)
	running.ends(t)
	must.NoError(t, p.Give(again))
}

// Records come in any order; a number that one of them has must never be made again.
func TestRecover_inAnyOrder(t *testing.T) {
	w := newWorld(t)
	first := w.pool(nil)
	var refs []Ref
	held := map[int]bool{}
	for range 3 {
		s := w.take(first)
		ns, err := os.Open(procFD(s.Namespace()))
		must.NoError(t, err)
		defer ns.Close()
		refs = append(refs, s.Ref())
		held[s.Number] = true
	}
	must.NoError(t, first.Close())
	p, err := Open(Config{Owner: "0a1b2c", Dir: w.dir, Host: w.host, Ahead: 2, Quiet: 10 * time.Millisecond})
	must.NoError(t, err)
	w.closing(p)
	slices.Reverse(refs)
	for _, r := range refs {
		_, err := p.Recover(r)
		must.NoError(t, err)
	}
	_, err = p.Sweep()
	must.NoError(t, err)
	p.Start()
	for range 4 {
		s := w.take(p)
		must.False(t, held[s.Number], must.Sprintf("slot %d is another sandbox's", s.Number))
		must.NoError(t, p.Give(s))
	}
}

func TestAdopt_wiresANamespaceThatExists(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(nil))
	serve(t, w.outside, outsideAddr+":80")
	var ns *os.File
	must.NoError(t, inNamespace(nil, func() (err error) { ns, err = ownNamespace(); return err }))
	defer ns.Close()
	s, err := p.Adopt(t.Context(), ns)
	must.NoError(t, err)
	got, err := ask(ns, "tcp4", outsideAddr+":80")
	must.NoError(t, err)
	must.EqOp(t, hostAddr, got)
	must.NoError(t, p.Give(s))
	_, err = ask(ns, "tcp4", outsideAddr+":80")
	must.Error(t, err)
}

func TestRange_avoidsWhatTheMachineUses(t *testing.T) {
	w := newWorld(t)
	p := w.pool(nil)
	first := p.Range()
	must.NoError(t, p.Close())
	must.NoError(t, p.Remove())
	must.NoError(t, inNamespace(w.host, func() error { return plug("lo", first.Addr().Next().Next().String()+"/32") }))
	p = w.closing(w.pool(nil))
	must.NotEqOp(t, first, p.Range())
	_, err := Open(Config{Owner: "ffffff", Dir: t.TempDir(), Host: w.host, Range: first})
	must.ErrorContains(t, err, "the machine has a route to, or an address in")
}

func TestConfig_saysWhatIsWrong(t *testing.T) {
	for want, c := range map[string]Config{
		`owner "" is not six hexadecimal digits`:             {},
		`ahead is 5000, must be between 1 and 4096`:          {Owner: "0a1b2c", Ahead: 5000},
		`max is -1, must be between 1 and 65536`:             {Owner: "0a1b2c", Max: -1},
		`range 10.0.0.0/28 is no range of IPv4 between /8`:   {Owner: "0a1b2c", Range: netip.MustParsePrefix("10.0.0.0/28")},
		`range 10.0.0.1/24 is none of IPv4, or has bits`:     {Owner: "0a1b2c", Open: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
		`range 2001:db8::/32 is no range of IPv4 between /8`: {Owner: "0a1b2c", Range: netip.MustParsePrefix("2001:db8::/32")},
	} {
		_, err := Open(c)
		must.ErrorContains(t, err, want)
	}
}
