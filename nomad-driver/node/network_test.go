package node

import (
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// connect tries from inside, by bash's own way to a TCP connection, and returns what the other end says of where it comes from.
func connect(d *daemon, sb nodeapi.Sandbox, host string, port int) (string, bool) {
	d.t.Helper()
	out, code := d.exec(sb, "bash", "-c", `exec 3<>"/dev/tcp/$0/$1" && read -r line <&3 && echo "$line"`, host, strconv.Itoa(port))
	from, _, _ := strings.Cut(strings.TrimSpace(out), ":")
	return from, code == 0
}

func allowing(allow ...string) *nodeapi.Network {
	return &nodeapi.Network{Layers: []nodeapi.NetworkLayer{{Name: "sandbox", NetworkPolicy: api.NetworkPolicy{Allow: allow, Deny: []string{policy.Everything}}}}}
}

func TestRealNetwork_aSandboxReachesWhatItMay(t *testing.T) {
	w := networktest.New(t)
	for _, a := range []string{networktest.OutsideAddr, "198.51.100.1", "169.254.169.254"} {
		networktest.Serve(t, w.Outside, a+":80")
	}
	networktest.Serve(t, w.Host, "0.0.0.0:4646")
	d := startDaemonIn(t, w.Host, "-network", "on")
	open := d.create()
	narrow := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("198.51.100.1") })

	from, ok := connect(d, open, networktest.OutsideAddr, 80)
	must.True(t, ok)
	must.EqOp(t, networktest.HostAddr, from)
	_, ok = connect(d, narrow, networktest.OutsideAddr, 80)
	must.False(t, ok)
	_, ok = connect(d, narrow, "198.51.100.1", 80)
	must.True(t, ok)
	st, err := d.client.Network(t.Context(), open.ID)
	must.NoError(t, err)
	must.True(t, st.Enabled)
	must.Positive(t, st.Counts.SentPackets)
	for _, to := range []struct {
		host string
		port int
	}{{"169.254.169.254", 80}, {networktest.HostAddr, 4646}, {st.Host.String(), 4646}, {st.Gateway.String(), 4646}, {"127.0.0.1", 4646}} {
		_, ok := connect(d, open, to.host, to.port)
		must.False(t, ok, must.Sprintf("%s:%d", to.host, to.port))
	}
	st, err = d.client.Network(t.Context(), narrow.ID)
	must.NoError(t, err)
	must.SliceNotEmpty(t, st.Denied)
	must.EqOp(t, "deny 0.0.0.0/0", st.Denied[0].Rule)
	must.EqOp(t, "sandbox", st.Denied[0].Layer)
	must.EqOp(t, networktest.OutsideAddr, st.Denied[0].Address.String())
	_, ok = connect(d, open, hostOf(d, narrow), 80)
	must.False(t, ok)

	// What another policy would make of what was let through and of what was denied: nothing changes.
	run, err := d.client.DryRunNetwork(t.Context(), narrow.ID, *allowing(networktest.OutsideAddr))
	must.NoError(t, err)
	denies := nodeapi.NetworkVerdict{Layer: "sandbox", Rule: "deny 0.0.0.0/0"}
	allows := func(a string) nodeapi.NetworkVerdict {
		return nodeapi.NetworkVerdict{Allow: true, Layer: "sandbox", Rule: "allow " + a}
	}
	for i, f := range []struct {
		to        string
		now, then nodeapi.NetworkVerdict
	}{{"198.51.100.1", allows("198.51.100.1"), denies}, {networktest.OutsideAddr, denies, allows(networktest.OutsideAddr)}} {
		got := run.Flows[i]
		must.EqOp(t, f.to+":80", netip.AddrPortFrom(got.Address, got.Port).String())
		must.Eq(t, f.now, got.Now)
		must.Eq(t, f.then, got.Then)
	}
	_, ok = connect(d, narrow, networktest.OutsideAddr, 80)
	must.False(t, ok)

	v, err := d.client.TestNetwork(t.Context(), narrow.ID, nodeapi.NetworkTest{Address: netip.MustParseAddr("169.254.169.254"), Port: 80})
	must.NoError(t, err)
	must.EqOp(t, "deny 169.254.0.0/16", v.Rule)
	v, err = d.client.TestNetwork(t.Context(), narrow.ID, nodeapi.NetworkTest{Address: netip.MustParseAddr("198.51.100.1"), Port: 80})
	must.NoError(t, err)
	must.True(t, v.Allow)

	// Ports are bound by anybody, and nothing of the network is changed from inside.
	_, code := d.exec(open, "bash", "-c", "! (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null")
	must.EqOp(t, 0, code)
}

func hostOf(d *daemon, sb nodeapi.Sandbox) string {
	st, err := d.client.Network(d.t.Context(), sb.ID)
	must.NoError(d.t, err)
	return st.Host.String()
}

// configFile writes a configuration file of the daemon.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.hcl")
	must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestRealNetwork_namesOpenTheWayToTheirAddresses(t *testing.T) {
	w := networktest.New(t)
	for _, a := range []string{"198.51.100.1", "198.51.100.2", "10.9.9.9"} {
		networktest.Serve(t, w.Outside, a+":8080")
	}
	zone := []string{
		"www.example.com. 60 IN A 198.51.100.1", "other.example.org. 60 IN A 198.51.100.2", "rebind.example.com. 0 IN A 198.51.100.1",
		"inside.example.com. 60 IN A 10.9.9.9",
	}
	names := networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53", zone...)
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	open := d.create()
	narrow := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("*.example.com") })

	out, code := d.exec(open, "cat", "/etc/resolv.conf")
	must.EqOp(t, 0, code)
	must.StrContains(t, out, "nameserver 10.255.255.1\n")
	for _, c := range []struct {
		sb   nodeapi.Sandbox
		name string
		want bool
	}{
		{open, "www.example.com", true}, {open, "other.example.org", true}, {open, "inside.example.com", false}, {open, "none.example.com", false},
		{narrow, "198.51.100.1", false}, {narrow, "www.example.com", true}, {narrow, "198.51.100.1", true}, {narrow, "other.example.org", false},
		{narrow, "198.51.100.2", false}, {narrow, "inside.example.com", false}, {narrow, "rebind.example.com", true},
	} {
		_, ok := connect(d, c.sb, c.name, 8080)
		must.EqOp(t, c.want, ok, must.Sprint(c.name))
	}
	// The name now leads inside: the next connection does not follow it.
	names.Set(t, append(zone[:2:2], "rebind.example.com. 0 IN A 10.9.9.9")...)
	_, ok := connect(d, narrow, "rebind.example.com", 8080)
	must.False(t, ok)
	st, err := d.client.Network(t.Context(), narrow.ID)
	must.NoError(t, err)
	must.Positive(t, st.Names.Denied)
	must.Positive(t, st.Names.Refused)
	denied := map[string]string{}
	for _, n := range st.Names.Last {
		if !n.Allow {
			denied[n.Name] = n.Layer + ": " + n.Rule
		}
	}
	must.EqOp(t, "sandbox: deny 0.0.0.0/0", denied["other.example.org"])
	must.StrContains(t, denied["rebind.example.com"], "platform: ")

	// What was pinned outlives the daemon, and the next one answers.
	d.kill()
	d.start()
	_, ok = connect(d, narrow, "198.51.100.1", 8080)
	must.True(t, ok)
	_, ok = connect(d, narrow, "www.example.com", 8080)
	must.True(t, ok)
	_, ok = connect(d, narrow, "other.example.org", 8080)
	must.False(t, ok)
}

// web asks over plain HTTP from inside and returns the status line and the body.
func web(d *daemon, sb nodeapi.Sandbox, at, host string) string {
	d.t.Helper()
	out, _ := d.exec(sb, "bash", "-c", `exec 3<>"/dev/tcp/$0/80" && printf 'GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nX-Key: mine\r\n\r\n' "$1" >&3 && cat <&3`, at, host)
	head, body, _ := strings.Cut(out, "\r\n\r\n")
	line, _, _ := strings.Cut(head, "\r\n")
	return line + " | " + strings.TrimSpace(body)
}

func TestRealNetwork_theWebGoesWhereItsNamesMay(t *testing.T) {
	w := networktest.New(t)
	networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53",
		"www.example.com. 60 IN A 198.51.100.1", "api.example.com. 60 IN A 198.51.100.2", "evil.example.org. 60 IN A 198.51.100.1")
	networktest.ServeWeb(t, w.Outside, "198.51.100.1:80", nil)
	cert := networktest.ServeWeb(t, w.Outside, "198.51.100.2:443", []string{"api.example.com"})
	roots := filepath.Join(t.TempDir(), "roots.pem")
	must.NoError(t, os.WriteFile(roots, cert, 0o600))
	t.Setenv("SSL_CERT_FILE", roots)
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("*.example.com") })

	must.EqOp(t, `HTTP/1.1 200 OK | GET www.example.com / key "mine"`, web(d, sb, "www.example.com", "www.example.com"))
	// One address has two names, and only one is allowed.
	must.EqOp(t, "HTTP/1.1 403 Forbidden | soulbox: denied by sandbox: deny 0.0.0.0/0", web(d, sb, "198.51.100.1", "evil.example.org"))
	st, err := d.client.Network(t.Context(), sb.ID)
	must.NoError(t, err)
	must.EqOp(t, "evil.example.org", st.Proxied[0].Name)
	must.False(t, st.Proxied[0].Allow)
	// Nobody reaches the proxy but by way of another destination.
	_, ok := connect(d, sb, "10.255.255.1", 15001)
	must.False(t, ok)

	// A header that the sandbox never has.
	want := *allowing("*.example.com")
	want.Rules = []nodeapi.NetworkRule{{Domain: "api.example.com", Headers: map[string]string{"x-key": "s3cret-of-the-tenant"}}}
	st, err = d.client.SetNetwork(t.Context(), sb.ID, want)
	must.NoError(t, err)
	must.Eq(t, []nodeapi.NetworkRule{{Domain: "api.example.com", Headers: map[string]string{"x-key": ""}}}, st.Rules)
	must.EqOp(t, `HTTP/1.1 200 OK | GET api.example.com / key "s3cret-of-the-tenant"`, web(d, sb, "api.example.com", "api.example.com"))
	out, _ := d.exec(sb, "bash", "-c", `{ env; cat /proc/[0-9]*/environ /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt /run/e2b/.* 2>/dev/null; } | tr '\0' '\n'`)
	must.StrNotContains(t, out, "s3cret")
	must.StrContains(t, out, "BEGIN CERTIFICATE")
	must.StrNotContains(t, out, "PRIVATE KEY")
	must.EqOp(t, `HTTP/1.1 200 OK | GET www.example.com / key "mine"`, web(d, sb, "www.example.com", "www.example.com"))

	// Without the daemon's memory, by its record.
	d.kill()
	d.start()
	must.StrContains(t, web(d, sb, "api.example.com", "api.example.com"), "s3cret-of-the-tenant")
	must.StrContains(t, web(d, sb, "198.51.100.1", "evil.example.org"), "403 Forbidden")
	_, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{})
	must.NoError(t, err)
	must.EqOp(t, `HTTP/1.1 200 OK | GET evil.example.org / key "mine"`, web(d, sb, "198.51.100.1", "evil.example.org"))

	for text, bad := range map[string]nodeapi.Network{
		`network.rules[0].domain: "1.2.3.4" is no domain`:                       {Rules: []nodeapi.NetworkRule{{Domain: "1.2.3.4"}}},
		`network.rules[0].headers: 0, must be between 1 and 20`:                 {Rules: []nodeapi.NetworkRule{{Domain: "a.example"}}},
		`network.rules[0].headers: Host is of the connection`:                   {Rules: []nodeapi.NetworkRule{{Domain: "a.example", Headers: map[string]string{"host": "x"}}}},
		`network.egress_proxy.address: scheme "ftp" is neither socks5 nor http`: {Proxy: &nodeapi.EgressProxy{Address: "ftp://x:1"}},
	} {
		_, err := d.client.SetNetwork(t.Context(), sb.ID, bad)
		must.EqOp(t, http.StatusBadRequest, api.StatusOf(err))
		must.ErrorContains(t, err, text)
	}
}

func TestRealNetwork_changesLiveAndOutlivesTheDaemon(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:80")
	networktest.Serve(t, w.Outside, "198.51.100.2:80")
	d := startDaemonIn(t, w.Host, "-network", "on")
	sb := d.create()
	_, ok := connect(d, sb, "198.51.100.2", 80)
	must.True(t, ok)
	st, err := d.client.SetNetwork(t.Context(), sb.ID, *allowing("198.51.100.1"))
	must.NoError(t, err)
	must.Len(t, 1, st.Layers)
	_, ok = connect(d, sb, "198.51.100.2", 80)
	must.False(t, ok)
	before := hostOf(d, sb)
	d.kill()
	d.start()
	must.EqOp(t, before, hostOf(d, sb))
	_, ok = connect(d, sb, "198.51.100.2", 80)
	must.False(t, ok)
	_, ok = connect(d, sb, "198.51.100.1", 80)
	must.True(t, ok)
	_, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{})
	must.NoError(t, err)
	_, ok = connect(d, sb, "198.51.100.2", 80)
	must.True(t, ok)

	_, err = d.client.SetNetwork(t.Context(), sb.ID, *allowing("exa mple"))
	must.EqOp(t, http.StatusBadRequest, api.StatusOf(err))
	must.ErrorContains(t, err, `network.layers[0].allow: entry "exa mple"`)

	// With the last sandbox, and the daemon, the machine's network is as it was.
	d.cleanup()
	d.cmd = nil
	var links []netlink.Link
	must.NoError(t, networktest.In(w.Host, func() (err error) { links, err = netlink.LinkList(); return err }))
	must.Len(t, 2, links)
}

func TestRealNetwork_isShapedLive(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:80")
	d := startDaemonIn(t, w.Host, "-network", "on")
	rate := api.NetworkDirection{Rate: 1 << 20}
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = &nodeapi.Network{Shape: &nodeapi.NetworkShape{In: rate}} })
	disciplines := func() []string {
		var list []netlink.Qdisc
		must.NoError(t, networktest.In(w.Host, func() error {
			link, err := netlink.LinkByName(linkOf(d, sb))
			must.NoError(t, err)
			list, err = netlink.QdiscList(link)
			return err
		}))
		var names []string
		for _, q := range list {
			names = append(names, q.Type())
		}
		return names
	}
	must.SliceContains(t, disciplines(), "tbf")
	_, ok := connect(d, sb, "198.51.100.1", 80)
	must.True(t, ok)
	// Another daemon does not have the slot's namespace, and finds it.
	d.kill()
	d.start()
	st, err := d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{Shape: &nodeapi.NetworkShape{Out: rate}})
	must.NoError(t, err)
	must.Eq(t, &nodeapi.NetworkShape{Out: rate}, st.Shape)
	must.SliceNotContains(t, disciplines(), "tbf")
	out, _ := d.exec(sb, "cat", "/proc/net/dev")
	must.StrContains(t, out, "eth0")

	_, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{Shape: &nodeapi.NetworkShape{In: api.NetworkDirection{Rate: 1}}})
	must.EqOp(t, http.StatusBadRequest, api.StatusOf(err))
	must.ErrorContains(t, err, "network.shape.in: rate_bytes is 1")
	late := api.NetworkDirection{Delay: time.Millisecond}
	st, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{Shape: &nodeapi.NetworkShape{In: late}})
	if api.StatusOf(err) == http.StatusNotImplemented {
		must.ErrorContains(t, err, "sch_netem")
		st, err = d.client.Network(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, &nodeapi.NetworkShape{Out: rate}, st.Shape)
		return
	}
	must.NoError(t, err)
	must.Eq(t, &nodeapi.NetworkShape{In: late}, st.Shape)
}

func linkOf(d *daemon, sb nodeapi.Sandbox) string {
	st, err := d.client.Network(d.t.Context(), sb.ID)
	must.NoError(d.t, err)
	return st.Link
}

// A sandbox goes to disk with its server and comes back behind another slot, with the same address inside and the same policy.
func TestRealNetwork_survivesACheckpoint(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:80")
	networktest.Serve(t, w.Outside, "198.51.100.2:80")
	d := startDaemonIn(t, w.Host, "-network", "on", "-criu", sandboxtest.CRIU(t))
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("198.51.100.1") })
	d.startCounter(sb)
	reaches := func(sb nodeapi.Sandbox) {
		t.Helper()
		_, ok := connect(d, sb, "198.51.100.1", 80)
		must.True(t, ok)
		_, ok = connect(d, sb, "198.51.100.2", 80)
		must.False(t, ok, must.Sprint("its policy is lost"))
		d.counts(sb)
		_, code := d.exec(sb, "bash", "-c", "! (echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null")
		must.EqOp(t, 0, code)
	}
	for range 2 {
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.NoError(t, err)
		d.kill()
		d.start()
		_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(t, err)
		reaches(sb)
		d.kill() // the new slot is found again too
		d.start()
		reaches(sb)
	}

	id := api.NewSnapshotID()
	_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	reaches(sb)
	req := restoreRequest(id, "a")
	req.Network = allowing("198.51.100.2")
	copied, err := d.client.Create(t.Context(), req)
	must.NoError(t, err)
	_, ok := connect(d, copied, "198.51.100.2", 80)
	must.True(t, ok)
	_, ok = connect(d, copied, "198.51.100.1", 80)
	must.False(t, ok, must.Sprint("a copy has the policy of its own request"))
	must.NotEq(t, hostOf(d, sb), hostOf(d, copied))
	reaches(sb)
}

// What a sandbox may reach changes while it is paused, in memory or on disk: what it is resumed with holds from its first packet on.
func TestRealNetwork_isResumedWithWhatItMayReachByThen(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, networktest.OutsideAddr+":80")
	d := startDaemonIn(t, w.Host, "-network", "on", "-criu", sandboxtest.CRIU(t))
	for _, depth := range []nodeapi.Depth{nodeapi.DepthFrozen, nodeapi.DepthCheckpointed, nodeapi.DepthFiles} {
		sb := d.create()
		reaches := func() bool { _, ok := connect(d, sb, networktest.OutsideAddr, 80); return ok }
		again := func(n *nodeapi.Network) {
			t.Helper()
			_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
			must.NoError(t, err, must.Sprint(depth))
			_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{Network: n})
			must.NoError(t, err, must.Sprint(depth))
		}
		must.True(t, reaches())
		narrow := allowing("198.51.100.1")
		narrow.Shape = &nodeapi.NetworkShape{Out: api.NetworkDirection{Rate: 1 << 20}}
		again(narrow)
		must.False(t, reaches(), must.Sprint(depth))
		st, err := d.client.Network(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, narrow.Shape, st.Shape)
		again(nil)
		must.False(t, reaches(), must.Sprint("as before"))
		again(&nodeapi.Network{})
		must.True(t, reaches(), must.Sprint(depth))
		_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
		must.NoError(t, err)
		bad := nodeapi.ResumeRequest{Network: &nodeapi.Network{Shape: &nodeapi.NetworkShape{In: api.NetworkDirection{Rate: 1}}}}
		_, err = d.client.Resume(t.Context(), sb.ID, bad)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(depth))
		_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(t, err, must.Sprint("what it refused has changed nothing"))
	}
}

func TestRealNetwork_isThereWithoutAskingAndOffWithAReason(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:80")
	probe := func(d *daemon) nodeapi.Probe {
		n, err := d.client.Node(t.Context())
		must.NoError(t, err)
		return n.Probes[len(n.Probes)-1]
	}
	t.Run("by default", func(t *testing.T) {
		d := startDaemonIn(t, w.Host)
		p := probe(d)
		must.EqOp(t, api.ProbeNetwork, p.Name)
		must.True(t, p.OK)
		_, ok := connect(d, d.create(), "198.51.100.1", 80)
		must.True(t, ok)
	})
	t.Run("turned off", func(t *testing.T) {
		d := startDaemonIn(t, w.Host, "-network", "off")
		must.EqOp(t, "the operator has turned it off", probe(d).Reason)
		sb := d.create()
		_, ok := connect(d, sb, "198.51.100.1", 80)
		must.False(t, ok)
		st, err := d.client.Network(t.Context(), sb.ID)
		must.NoError(t, err)
		must.False(t, st.Enabled)
		must.EqOp(t, "the operator has turned it off", st.Reason)
		_, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{})
		must.EqOp(t, http.StatusNotImplemented, api.StatusOf(err))
	})
	t.Run("where the machine forwards nothing", func(t *testing.T) {
		c, err := nftables.New(nftables.WithNetNSFd(int(w.Host.Fd())))
		must.NoError(t, err)
		drop := nftables.ChainPolicyDrop
		table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
		c.AddChain(&nftables.Chain{
			Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		must.NoError(t, c.Flush())
		d := startDaemonIn(t, w.Host)
		must.StrContains(t, probe(d).Reason, "let the machine's own firewall forward")
		_, ok := connect(d, d.create(), "198.51.100.1", 80)
		must.False(t, ok)
	})
}
