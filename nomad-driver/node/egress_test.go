package node

import (
	"net/netip"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// All of a sandbox's connections go through the proxy of its owner, which is told the name where the policy has names; nothing goes past it.
func TestRealEgress_everythingGoesThroughTheOwnersProxy(t *testing.T) {
	w := networktest.New(t)
	networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53", "www.example.com. 60 IN A 198.51.100.1")
	networktest.ServeWeb(t, w.Outside, "198.51.100.1:80", nil)
	networktest.Serve(t, w.Outside, "198.51.100.1:9000")
	hosts := map[string]string{"www.example.com": "198.51.100.1"}
	proxies := map[string]*networktest.Egress{
		"socks5": networktest.ServeEgress(t, w.Outside, "socks5", "198.51.100.2:1080", "acme", "right", hosts),
		"http":   networktest.ServeEgress(t, w.Outside, "http", "198.51.100.2:3128", "acme", "right", hosts),
	}
	networktest.ServeEgress(t, w.Outside, "socks5", "10.9.9.9:1080", "acme", "right", hosts)
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	sb := d.create()
	through := func(address, password string, layers ...nodeapi.NetworkLayer) {
		t.Helper()
		_, err := d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{
			Proxy: &nodeapi.EgressProxy{Address: address, Username: "acme", Password: password}, Layers: layers,
		})
		must.NoError(t, err)
	}
	for scheme, address := range map[string]string{"socks5": "socks5://198.51.100.2:1080", "http": "http://198.51.100.2:3128"} {
		through(address, "right")
		must.EqOp(t, `HTTP/1.1 200 OK | GET www.example.com / key "mine"`, web(d, sb, "www.example.com", "www.example.com"), must.Sprint(scheme))
		must.Eq(t, []string{"198.51.100.1:80"}, proxies[scheme].Asked(), must.Sprint(scheme)) // nobody looked into it
		through(address, "right", allowing("*.example.com").Layers...)
		must.EqOp(t, `HTTP/1.1 200 OK | GET www.example.com / key "mine"`, web(d, sb, "www.example.com", "www.example.com"), must.Sprint(scheme))
		must.Eq(t, []string{"198.51.100.1:80", "www.example.com:80"}, proxies[scheme].Asked(), must.Sprint(scheme))
		v, err := d.client.TestNetwork(t.Context(), sb.ID, nodeapi.NetworkTest{Address: netip.MustParseAddr("198.51.100.1"), Proto: "udp", Port: 9000})
		must.NoError(t, err)
		must.EqOp(t, "the sandbox's egress proxy carries tcp only", v.Rule)

		asked := len(proxies[scheme].Asked())
		through(address, "wrong")
		must.StrNotContains(t, web(d, sb, "www.example.com", "www.example.com"), "200 OK", must.Sprint(scheme))
		must.Len(t, asked, proxies[scheme].Asked())
	}
	// A proxy in the node's own network is none that a tenant may name.
	through("socks5://10.9.9.9:1080", "right")
	must.StrNotContains(t, web(d, sb, "www.example.com", "www.example.com"), "200 OK")
	st, err := d.client.Network(t.Context(), sb.ID)
	must.NoError(t, err)
	must.EqOp(t, "socks5://10.9.9.9:1080", st.Proxy)
}
