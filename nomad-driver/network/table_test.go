package network

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Two tenants, two sandboxes of one and one of the other, the machine, and hosts outside: who reaches whom under which policy, by real
// connections. The table is printed.
func TestTable_whoReachesWhomUnderWhichPolicy(t *testing.T) {
	w := newWorld(t)
	p := w.closing(w.pool(func(c *Config) { c.Ahead = 4 }))
	web, db, rival := w.take(p), w.take(p), w.take(p) // web and db are acme's
	for _, s := range []*Slot{web, db, rival} {
		serve(t, s.Namespace(), "0.0.0.0:80")
	}
	serve(t, w.host, "0.0.0.0:4646")
	for _, a := range elsewhere {
		serve(t, w.outside, a+":80")
	}
	serve(t, w.outside, "198.51.100.2:443")
	type column struct {
		name, netw, address string
		port                int
	}
	columns := []column{
		{"acme's db", "tcp4", db.Addr.String(), 80}, {"rival's", "tcp4", rival.Addr.String(), 80},
		{"host", "tcp4", hostAddr, 4646}, {"metadata", "tcp4", "169.254.169.254", 80}, {"10.9.9.9", "tcp4", "10.9.9.9", 80},
		{"198.51.100.1", "tcp4", "198.51.100.1", 80}, {"…100.2:80", "tcp4", "198.51.100.2", 80}, {"…100.2:443", "tcp4", "198.51.100.2", 443},
		{"8.8.8.8", "tcp4", "8.8.8.8", 80}, {"8.8.8.8 udp", "udp4", "8.8.8.8", 80},
	}
	closed := new(bool)
	for _, row := range []struct {
		name    string
		layers  []policy.Layer
		network bool // web and db are in a private network
		want    string
	}{
		{"none", nil, false, "- - - - - x x x x x"},
		{"none, in a private network with db", nil, true, "x - - - - x x x x x"},
		{"sandbox: no internet", []policy.Layer{spec(t, "sandbox", policy.Spec{Internet: closed})}, true, "x - - - - - - - - -"},
		{"sandbox: allow …100.2:443 alone", []policy.Layer{spec(t, "sandbox", policy.Spec{Internet: closed, Allow: []string{"tcp://198.51.100.2:443"}})}, false, "- - - - - - - x - -"},
		{"sandbox: deny …100.0/24", []policy.Layer{spec(t, "sandbox", policy.Spec{Deny: []string{"198.51.100.0/24"}})}, false, "- - - - - - - - x x"},
		{"sandbox: allow everything, also what nobody may", []policy.Layer{
			spec(t, "sandbox", policy.Spec{Allow: []string{"0.0.0.0/0", "169.254.169.254", "10.0.0.0/8", hostAddr}}),
		}, false, "- - - - - x x x x x"},
		{"operator: deny 8.8.8.8; sandbox: allow it", []policy.Layer{
			spec(t, "operator", policy.Spec{Deny: []string{"8.8.8.8"}}), spec(t, "sandbox", policy.Spec{Allow: []string{"8.8.8.8"}}),
		}, false, "- - - - - x x x - -"},
		{"tenant: …100.0/24 alone; sandbox: allow everything", []policy.Layer{
			spec(t, "tenant", policy.Spec{Internet: closed, Allow: []string{"198.51.100.0/24"}}), spec(t, "sandbox", policy.Spec{Allow: []string{"0.0.0.0/0"}}),
		}, false, "- - - - - x x x - -"},
		{"operator: deny udp; tenant: deny …100.1; template: tcp 80 and 443 alone; sandbox: deny 443", []policy.Layer{
			spec(t, "operator", policy.Spec{Deny: []string{"udp://0.0.0.0/0"}}), spec(t, "tenant", policy.Spec{Deny: []string{"198.51.100.1"}}),
			spec(t, "template", policy.Spec{Internet: closed, Allow: []string{"tcp://0.0.0.0/0:80,443"}}), spec(t, "sandbox", policy.Spec{Deny: []string{"tcp://0.0.0.0/0:443"}}),
		}, true, "x - - - - - x - x -"},
	} {
		pol := policy.New(p.Base(), row.layers...)
		_, err := p.Apply(web, pol)
		must.NoError(t, err)
		var members []Membership
		if row.network {
			members = []Membership{in("acme/backend", "m")}
		}
		for _, s := range []*Slot{web, db} {
			_, err := p.Join(s, members)
			must.NoError(t, err)
		}
		var got []string
		var line strings.Builder
		for _, c := range columns {
			_, err := ask(web.Namespace(), c.netw, net.JoinHostPort(c.address, strconv.Itoa(c.port)))
			cell := "-"
			if err == nil {
				cell = "x"
			}
			got = append(got, cell)
			line.WriteString("  " + cell + " " + c.name)
			f := policy.Flow{Addr: netip.MustParseAddr(c.address), Proto: policy.TCP, Port: uint16(c.port)} //nolint:gosec // a port
			if c.netw == "udp4" {
				f.Proto = policy.UDP
			}
			if !p.prefix.Contains(f.Addr) { // those of slots are the pool's to explain
				must.EqOp(t, err == nil, pol.Decide(f).Allow, must.Sprintf("%s: what is explained of %s is what is done", row.name, f))
			}
		}
		t.Logf("%-100s%s", row.name, line.String())
		must.EqOp(t, row.want, strings.Join(got, " "), must.Sprint(row.name))
	}
	for _, s := range []*Slot{web, db, rival} {
		must.NoError(t, p.Give(s))
	}
}
