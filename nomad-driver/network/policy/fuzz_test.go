package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// FuzzParseEntry checks what the firewall and the resolver rely on: a parsed entry is either a masked prefix or a plain name,
// its ports are sorted and apart, and what it was written as means the same again.
func FuzzParseEntry(f *testing.F) {
	for _, s := range []string{
		"1.2.3.4", "10.0.0.0/8:22", "tcp://*.example.com:443,8000-8100", "[2001:db8::1]:443", "::ffff:1.2.3.4", "udp://[::]:1-65535", "a_b.c",
		"icmp://0.0.0.0/0", "1.2.3.4:5,4-9,7", "*.", ":", "://", "[]:1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := policy.ParseEntry(s)
		if err != nil {
			return
		}
		must.True(t, e.Prefix.IsValid() != (e.Name != ""))
		if e.Prefix.IsValid() {
			must.EqOp(t, e.Prefix.Masked(), e.Prefix)
			must.False(t, e.Prefix.Addr().Is4In6())
		} else {
			again, err := policy.ParseName(e.Name)
			must.NoError(t, err)
			must.EqOp(t, e.Name, again)
		}
		for i, r := range e.Ports {
			must.True(t, 1 <= r.From && r.From <= r.To)
			must.True(t, i == 0 || uint32(e.Ports[i-1].To)+1 < uint32(r.From))
		}
		twice, err := policy.ParseEntry(e.Text)
		must.NoError(t, err)
		must.Eq(t, e, twice)
	})
}

// FuzzDecide checks that no layer lifts a deny of the platform and that an inner layer never widens.
func FuzzDecide(f *testing.F) {
	f.Add("10.0.0.0/8", "1.1.1.1", uint32(0x0a000001), uint16(443))
	f.Add("tcp://0.0.0.0/0:443", "0.0.0.0/0", uint32(0xa9fea9fe), uint16(80))
	f.Fuzz(func(t *testing.T, allow, deny string, addr uint32, port uint16) {
		inner, err := policy.ParseLayer("inner", policy.Spec{Allow: []string{allow}, Deny: []string{deny}})
		if err != nil {
			return
		}
		outer, err := policy.ParseLayer("outer", policy.Spec{Deny: []string{deny}})
		must.NoError(t, err)
		flow := policy.Flow{Addr: netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)}), Proto: policy.TCP, Port: port}
		both := policy.New(policy.Base{}, outer, inner).Decide(flow)
		if both.Allow {
			must.True(t, policy.New(policy.Base{}, outer).Decide(flow).Allow)
			must.True(t, policy.New(policy.Base{}, inner).Decide(flow).Allow)
			must.False(t, slices.ContainsFunc(policy.DefaultDeny(), func(p netip.Prefix) bool { return p.Contains(flow.Addr) }))
		}
	})
}
