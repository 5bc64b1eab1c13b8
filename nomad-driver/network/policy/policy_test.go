package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

func off() *bool { b := false; return &b }

func layer(t *testing.T, name string, s policy.Spec) policy.Layer {
	t.Helper()
	l, err := policy.ParseLayer(name, s)
	must.NoError(t, err)
	return l
}

func tcp(addr string, port uint16, names ...string) policy.Flow {
	return policy.Flow{Addr: netip.MustParseAddr(addr), Names: names, Proto: policy.TCP, Port: port}
}

func TestPolicy_decidesEachDestinationWithTheRuleThatSaysSo(t *testing.T) {
	resolver := netip.MustParseAddrPort("10.200.0.1:53")
	base := policy.Base{
		Open: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Host: []netip.Addr{netip.MustParseAddr("203.0.113.7")}, Resolver: resolver,
	}
	closed := policy.Spec{Allow: []string{"1.1.1.1", "*.example.com", "tcp://192.0.2.0/24:443,8000-8010"}, Deny: []string{policy.Everything}}
	for _, c := range []struct {
		name  string
		specs []policy.Spec // named 0, 1, …
		flow  policy.Flow
		want  string
	}{
		{"nothing said", nil, tcp("8.8.8.8", 443), "allowed by platform"},
		{"an empty layer", []policy.Spec{{}}, tcp("8.8.8.8", 443), "allowed by platform"},
		{"the metadata service", nil, tcp("169.254.169.254", 80), "denied by platform: deny 169.254.0.0/16"},
		{"a mapped metadata service", nil, tcp("::ffff:169.254.169.254", 80), "denied by platform: deny 169.254.0.0/16"},
		{"metadata although it is allowed", []policy.Spec{{Allow: []string{"169.254.169.254"}}}, tcp("169.254.169.254", 80), "denied by platform: deny 169.254.0.0/16"},
		{"metadata over IPv6", nil, tcp("fd00:ec2::254", 80), "denied by platform: sandboxes have no IPv6"},
		{"a private range", nil, tcp("192.168.1.1", 22), "denied by platform: deny 192.168.0.0/16"},
		{"a range that the operator opened", nil, tcp("10.1.2.3", 22), "allowed by platform"},
		{"an opened range that a layer denies", []policy.Spec{{Deny: []string{"10.1.2.0/24"}}}, tcp("10.1.2.3", 22), "denied by 0: deny 10.1.2.0/24"},
		{"multicast", nil, tcp("224.0.0.251", 5353), "denied by platform: deny 224.0.0.0/4"},
		{"broadcast", nil, tcp("255.255.255.255", 67), "denied by platform: deny 240.0.0.0/4"},
		{"the host's address", nil, tcp("203.0.113.7", 4646), "denied by platform: the host's own address 203.0.113.7"},
		{"another name server", nil, tcp("8.8.8.8", 53), "denied by platform: names are looked up at the resolver only"},
		{"names over TLS", nil, tcp("1.1.1.1", 853), "denied by platform: names are looked up at the resolver only"},
		{"the resolver", nil, tcp("10.200.0.1", 53), "allowed by platform: the resolver"},
		{"the resolver's address, elsewhere", nil, tcp("10.200.0.1", 22), "denied by platform: of the resolver's address only port 53"},
		{"another protocol", nil, policy.Flow{Addr: netip.MustParseAddr("8.8.8.8"), Proto: 47}, "denied by platform: protocols other than tcp, udp and icmp"},
		{"no internet", []policy.Spec{{Internet: off()}}, tcp("8.8.8.8", 443), "denied by 0: no internet access"},
		{"no internet, but this", []policy.Spec{{Internet: off(), Allow: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "allowed by 0: allow 8.8.8.8"},
		{"a deny", []policy.Spec{{Deny: []string{"8.8.8.0/24"}}}, tcp("8.8.8.8", 443), "denied by 0: deny 8.8.8.0/24"},
		{"allow wins over deny", []policy.Spec{{Allow: []string{"8.8.0.0/16"}, Deny: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "allowed by 0: allow 8.8.0.0/16"},
		{"the same in both", []policy.Spec{{Allow: []string{"8.8.8.8"}, Deny: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "allowed by 0: allow 8.8.8.8"},
		{"a port of a range", []policy.Spec{closed}, tcp("192.0.2.9", 8003), "allowed by 0: allow tcp://192.0.2.0/24:443,8000-8010"},
		{"a port beside it", []policy.Spec{closed}, tcp("192.0.2.9", 8011), "denied by 0: deny 0.0.0.0/0"},
		{"another protocol than the entry's", []policy.Spec{closed}, policy.Flow{Addr: netip.MustParseAddr("192.0.2.9"), Proto: policy.UDP, Port: 443}, "denied by 0: deny 0.0.0.0/0"},
		{"ICMP where an entry has ports", []policy.Spec{{Internet: off(), Allow: []string{"9.9.9.9:1-65534"}}}, policy.Flow{Addr: netip.MustParseAddr("9.9.9.9"), Proto: policy.ICMP}, "denied by 0: no internet access"},
		{"a name that was looked up", []policy.Spec{closed}, tcp("5.5.5.5", 443, "a.b.example.com"), "allowed by 0: allow *.example.com"},
		{"the name above a wildcard", []policy.Spec{closed}, tcp("5.5.5.5", 443, "example.com"), "denied by 0: deny 0.0.0.0/0"},
		{"a name that only ends alike", []policy.Spec{closed}, tcp("5.5.5.5", 443, "badexample.com"), "denied by 0: deny 0.0.0.0/0"},
		{"the address of a name, not looked up", []policy.Spec{closed}, tcp("5.5.5.5", 443), "denied by 0: deny 0.0.0.0/0"},
		{"a name that answers with a private address", []policy.Spec{closed}, tcp("10.0.0.1", 443, "a.example.com"), "denied by platform: deny 10.0.0.0/8"},
		{"the outer layer denies", []policy.Spec{{Deny: []string{"8.8.8.8"}}, {Allow: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "denied by 0: deny 8.8.8.8"},
		{"the inner layer denies", []policy.Spec{{Allow: []string{"8.8.8.8"}}, {Deny: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "denied by 1: deny 8.8.8.8"},
		{"both name it", []policy.Spec{{Allow: []string{"8.0.0.0/8"}}, {Allow: []string{"8.8.8.8"}}}, tcp("8.8.8.8", 443), "allowed by 1: allow 8.8.8.8"},
		{"a layer without internet below one with", []policy.Spec{{}, {Internet: off()}}, tcp("8.8.8.8", 443), "denied by 1: no internet access"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers []policy.Layer
			for i, s := range c.specs {
				layers = append(layers, layer(t, fmt.Sprint(i), s))
			}
			must.EqOp(t, c.want, policy.New(base, layers...).Decide(c.flow).String())
		})
	}
}

func TestPolicy_closedLayersLetOnlyAllowedNamesBeKnown(t *testing.T) {
	open := layer(t, "tenant", policy.Spec{Deny: []string{"bad.example.com"}})
	for _, c := range []struct {
		name   string
		layers []policy.Layer
		lookup string
		want   bool
	}{
		{"nothing said", nil, "example.org", true},
		{"a denied name", []policy.Layer{open}, "bad.example.com", false},
		{"another one", []policy.Layer{open}, "good.example.com", true},
		{"an allowed name", []policy.Layer{open, layer(t, "s", policy.Spec{Allow: []string{"Example.ORG."}, Deny: []string{"0.0.0.0/0"}})}, "example.org", true},
		{"any other", []policy.Layer{layer(t, "s", policy.Spec{Allow: []string{"example.org"}, Deny: []string{"0.0.0.0/0"}})}, "data.evil.example", false},
		{"no internet", []policy.Layer{layer(t, "s", policy.Spec{Internet: off()})}, "example.org", false},
		{"an outer deny", []policy.Layer{open, layer(t, "s", policy.Spec{Allow: []string{"*.example.com"}})}, "bad.example.com", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			must.EqOp(t, c.want, policy.New(policy.Base{}, c.layers...).DecideName(c.lookup).Allow)
		})
	}
}

func TestParseEntry_saysWhatIsWrong(t *testing.T) {
	for in, want := range map[string]string{
		"":                       `"" is neither an IP address, nor a CIDR, nor a domain`,
		"1.2.3":                  `"1.2.3" is neither an IP address nor a CIDR`,
		"1.2.3.4/33":             `"1.2.3.4/33" is neither an IP address nor a CIDR`,
		"1.2.3.4:0":              `"0" is no port between 1 and 65535`,
		"1.2.3.4:65536":          `"65536" is no port between 1 and 65535`,
		"1.2.3.4:":               `"" is no port between 1 and 65535`,
		"1.2.3.4:90-80":          "the range of ports 90-80 is empty",
		"icmp://1.2.3.4:80":      "icmp has no ports",
		"sctp://1.2.3.4":         `protocol "sctp" is none of tcp, udp, icmp, any`,
		"[::1":                   "a bracket is not closed",
		"[::1]80":                `"80" after the bracket is not :PORTS`,
		"*.*.example.com":        `"*.*.example.com" is neither an IP address, nor a CIDR, nor a domain`,
		"a.*.example.com":        `"a.*.example.com" is neither an IP address, nor a CIDR, nor a domain`,
		"-a.example":             `"-a.example" is neither an IP address, nor a CIDR, nor a domain`,
		"exa mple.com":           `"exa mple.com" is neither an IP address, nor a CIDR, nor a domain`,
		"fe80::1%eth0":           `"fe80::1%eth0" is neither an IP address nor a CIDR`,
		"::ffff:10.0.0.0/64":     `"::ffff:10.0.0.0/64" is neither an IP address nor a CIDR`,
		"http://example.com":     `protocol "http" is none of tcp, udp, icmp, any`,
		"tcp://example.com/path": `"example.com/path" is neither an IP address nor a CIDR`,
	} {
		_, err := policy.ParseEntry(in)
		must.EqError(t, err, want, must.Sprintf("entry %q", in))
	}
}

func TestNotes_nameEntriesWithoutEffect(t *testing.T) {
	l := layer(t, "sandbox", policy.Spec{
		Allow: []string{"10.0.0.0/8", "example.com", "8.8.8.8", "2001:db8::1"}, Deny: []string{"8.8.8.8", "9.9.9.9"},
	})
	must.Eq(t, []string{
		"sandbox: allow 10.0.0.0/8 has no effect: the platform denies all of it",
		"sandbox: allow example.com has no effect: the layer allows everything else as well: deny 0.0.0.0/0 to allow only this",
		"sandbox: deny 8.8.8.8 has no effect: allow 8.8.8.8 wins over it",
		"sandbox: allow 2001:db8::1 has no effect: sandboxes have no IPv6",
	}, policy.New(policy.Base{}, l).Notes())
}

func TestGroups_mergeWhatTheFirewallTakesAsOneSet(t *testing.T) {
	l := layer(t, "l", policy.Spec{Allow: []string{
		"1.2.3.4", "tcp://5.0.0.0/8:443", "1.2.3.0/24", "example.com", "2001:db8::/32", "tcp://a.example:443", "1.2.3.4",
	}})
	g := policy.Groups(l.Allow)
	must.Len(t, 2, g)
	must.Eq(t, []netip.Prefix{netip.MustParsePrefix("1.2.3.0/24")}, g[0].Prefixes)
	must.True(t, g[0].Matches("example.com"))
	must.EqOp(t, policy.TCP, g[1].Proto)
	must.Eq(t, []policy.Ports{{From: 443, To: 443}}, g[1].Ports)
	must.True(t, g[1].Matches("a.example"))
}

func TestCheckE2B_answersWithTheTextsThatItsClientsKnow(t *testing.T) {
	const all = policy.Everything
	const needDeny = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."
	for _, c := range []struct {
		name        string
		allow, deny []string
		want        string
	}{
		{"nothing", nil, nil, ""},
		{"addresses", []string{"8.8.8.8", "2001:db8::1"}, []string{"1.1.1.0/24"}, ""},
		{"a domain with all denied", []string{"*.example.com", "8.8.8.8"}, []string{all}, ""},
		{"a domain alone", []string{"example.com"}, nil, needDeny},
		{"a domain with less denied", []string{"example.com"}, []string{"10.0.0.0/8"}, needDeny},
		{"a denied domain", nil, []string{"example.com"}, "invalid denied CIDR example.com"},
		{"a bad range", nil, []string{"10.0.0.0/99"}, "invalid denied CIDR 10.0.0.0/99"},
		{"a denied port", nil, []string{"10.0.0.0/8:22"}, `invalid deny out entry "10.0.0.0/8:22": port-specific rules are not supported for egress`},
		{"an allowed port", []string{"8.8.8.8:80"}, nil, `invalid allow out entry "8.8.8.8:80": port-specific rules are not supported for egress`},
		{"an allowed port of a domain", []string{"example.com:80"}, []string{all}, `invalid allow out entry "example.com:80": port-specific rules are not supported for egress`},
		{"nonsense", []string{"exa mple"}, []string{all}, "invalid allowed entry exa mple: neither an IP address, nor a CIDR, nor a domain"},
		{"too many", make([]string, policy.MaxEntries+1), nil, "network.allowOut: 1001 entries, at most 1000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := policy.CheckE2B(c.allow, c.deny)
			if c.want == "" {
				must.NoError(t, err)
				return
			}
			must.EqError(t, err, c.want)
		})
	}
}

func TestDecide_with200RulesFindsTheOne(t *testing.T) {
	s := policy.Spec{Internet: off()}
	for i := range 200 {
		s.Allow = append(s.Allow, fmt.Sprintf("203.0.%d.0/24:%d", i, 1000+i))
	}
	p := policy.New(policy.Base{}, layer(t, "sandbox", s))
	for i := range 200 {
		must.True(t, p.Decide(tcp(fmt.Sprintf("203.0.%d.9", i), uint16(1000+i))).Allow)
		must.False(t, p.Decide(tcp(fmt.Sprintf("203.0.%d.9", i), 999)).Allow)
	}
	must.Len(t, 200, policy.Groups(p.Layers()[0].Allow))
}
