package node

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/proxy"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// openProxy starts what carries connections by name, and through the egress proxies of sandboxes.
func (n *Node) openProxy() error {
	authority, err := proxy.OpenAuthority(n.cfg.StateDir)
	if err != nil {
		return err
	}
	l, err := n.network.ListenProxy()
	if err != nil {
		return err
	}
	n.authority = authority
	n.proxy = proxy.New(proxy.Config{Dial: n.network.Dial, Authority: authority, Logger: n.log.Named("proxy")})
	n.proxy.Serve(l)
	n.closers = append(n.closers, n.proxy.Close)
	return nil
}

// settings makes of what was asked for what the firewall, the resolver and the proxy decide by.
func (n *Node) settings(want *nodeapi.Network) (proxy.Settings, error) {
	if want == nil {
		want = &nodeapi.Network{}
	}
	pol, err := n.compile(want.Layers)
	if err != nil {
		return proxy.Settings{}, err
	}
	st := proxy.Settings{}
	if len(want.Rules) > nodeapi.MaxNetworkRules {
		return st, invalid("network.rules: %d rules, at most %d", len(want.Rules), nodeapi.MaxNetworkRules)
	}
	for i, r := range want.Rules {
		rule, err := parseRule(r)
		if err != nil {
			return st, invalid("network.rules[%d].%s", i, err)
		}
		st.Rules = append(st.Rules, rule)
		pol = pol.Through(policy.ProxyWeb)
	}
	if p := want.Proxy; p != nil {
		if st.Egress, err = proxy.ParseEgress(p.Address, p.Username, p.Password); err != nil {
			return st, invalid("network.egress_proxy.address: %s", err)
		}
		if len(p.Username) > 255 || len(p.Password) > 255 {
			return st, invalid("network.egress_proxy: username and password have at most 255 bytes each")
		}
		pol = pol.Through(policy.ProxyAll)
	}
	st.Policy = pol
	if err := checkMemberships(want.Join); err != nil {
		return st, err
	}
	return st, checkShape(want.Shape)
}

// unruly are headers of the connection, which no rule sets.
var unruly = []string{"Connection", "Content-Length", "Host", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Connection"}

func parseRule(r nodeapi.NetworkRule) (proxy.Rule, error) {
	e, err := policy.ParseEntry(r.Domain)
	if err != nil || e.Name == "" || e.Proto != policy.Any || len(e.Ports) > 0 {
		return proxy.Rule{}, fmt.Errorf("domain: %.80q is no domain", r.Domain)
	}
	if len(r.Headers) == 0 || len(r.Headers) > nodeapi.MaxRuleHeaders {
		return proxy.Rule{}, fmt.Errorf("headers: %d, must be between 1 and %d", len(r.Headers), nodeapi.MaxRuleHeaders)
	}
	rule := proxy.Rule{Domain: e, Headers: http.Header{}, Lacks: r.Lacks}
	for k, v := range r.Headers {
		name := http.CanonicalHeaderKey(k)
		switch {
		case len(k) > 64 || !httpguts.ValidHeaderFieldName(k):
			return proxy.Rule{}, fmt.Errorf("headers: %.80q is no name of a header of at most 64 bytes", k)
		case slices.Contains(unruly, name):
			return proxy.Rule{}, fmt.Errorf("headers: %s is of the connection and cannot be set", name)
		case len(v) > nodeapi.MaxRuleValue || !httpguts.ValidHeaderFieldValue(v):
			return proxy.Rule{}, fmt.Errorf("headers: the value of %s has more than %d bytes or what no header may have", name, nodeapi.MaxRuleValue)
		}
		rule.Headers.Set(name, v)
	}
	return rule, nil
}

// Where a sandbox finds whom to trust.
const (
	trustFile  = "/usr/local/share/ca-certificates/soulbox-egress.crt"
	bundleFile = "/etc/ssl/certs/ca-certificates.crt"
)

// outfit gives a sandbox that is made what it needs for its network: the name server, and where there are header rules the authority of the
// connections that the proxy ends.
func (n *Node) outfit(boot *guest.Boot, want *nodeapi.Network) {
	boot.Files = append(boot.Files, nameServerFile)
	if want == nil || len(want.Rules) == 0 {
		return
	}
	cert := string(n.authority.PEM())
	boot.Files = append(boot.Files,
		guest.BootFile{Path: trustFile, Content: cert}, guest.BootFile{Path: bundleFile, Content: cert, Append: true})
	// Of the clients that bring a list of their own.
	trust := []string{"NODE_EXTRA_CA_CERTS=" + trustFile, "REQUESTS_CA_BUNDLE=" + bundleFile}
	boot.Env = append(trust, boot.Env...) // later ones win
}

// trust gives a sandbox that runs the authority.
func (n *Node) trust(b *box) error {
	inst, err := b.running()
	if err != nil {
		return err
	}
	for _, f := range []guest.FileRequest{
		{Path: trustFile, Flags: os.O_WRONLY | os.O_CREATE | os.O_TRUNC, Parents: true},
		{Path: bundleFile, Flags: os.O_WRONLY | os.O_CREATE | os.O_APPEND, Parents: true},
	} {
		f.User = "root"
		file, _, err := inst.Guest().Open(n.ctx, f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		_, err = file.Write(n.authority.PEM())
		if cerr := file.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

// proxiedOf says what the proxy decided about a sandbox's connections.
func proxiedOf(c *proxy.Client) []nodeapi.NetworkProxied {
	var list []nodeapi.NetworkProxied
	for _, d := range c.Decisions() {
		list = append(list, nodeapi.NetworkProxied{
			Time: d.Time, Name: d.Name, Address: d.Flow.Addr, Port: d.Flow.Port, Allow: d.Allow, Layer: d.Layer, Rule: d.Rule,
		})
	}
	return list
}

// withoutValues returns rules without what nobody may read.
func withoutValues(rules []nodeapi.NetworkRule) []nodeapi.NetworkRule {
	var list []nodeapi.NetworkRule
	for _, r := range rules {
		headers := map[string]string{}
		for k := range r.Headers {
			headers[strings.ToLower(k)] = ""
		}
		list = append(list, nodeapi.NetworkRule{Domain: r.Domain, Headers: headers, Lacks: r.Lacks})
	}
	return list
}
