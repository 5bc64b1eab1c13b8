package policy

import (
	"net/netip"
	"slices"
	"strconv"
)

// Flow is a destination as a sandbox sees it.
type Flow struct {
	Addr  netip.Addr
	Names []string // for which the resolver gave the sandbox this address, as ParseName returns them
	Proto Proto
	Port  uint16 // 0 for protocols without
}

// String returns PROTO://ADDR:PORT.
func (f Flow) String() string {
	s := f.Proto.String() + "://"
	if f.Proto == TCP || f.Proto == UDP {
		return s + netip.AddrPortFrom(f.Addr, f.Port).String()
	}
	return s + f.Addr.String()
}

// Decision is the answer for a destination and why it is so.
type Decision struct {
	Allow bool   `json:"allow"`
	Layer string `json:"layer"`          // the layer that decided; LayerPlatform where none of the policy's did
	Rule  string `json:"rule,omitempty"` // its rule, as "deny 1.2.3.0/24"; empty where no rule names the destination
}

// LayerPlatform is the Layer of decisions that are not the policy's.
const LayerPlatform = "platform"

func (d Decision) String() string {
	verdict := "denied"
	if d.Allow {
		verdict = "allowed"
	}
	if d.Rule == "" {
		return verdict + " by " + d.Layer
	}
	return verdict + " by " + d.Layer + ": " + d.Rule
}

func platformDenies(rule string) Decision { return Decision{Layer: LayerPlatform, Rule: rule} }

// Decide says whether a sandbox with this policy reaches f. For an allowed destination the innermost layer that names it is
// given as the one that decided.
func (p *Policy) Decide(f Flow) Decision {
	f.Addr = f.Addr.Unmap()
	if p.base.Resolver.IsValid() && f.Addr == p.base.Resolver.Addr() {
		if f.Port == p.base.Resolver.Port() && (f.Proto == UDP || f.Proto == TCP) {
			return Decision{Allow: true, Layer: LayerPlatform, Rule: "the resolver"}
		}
		return platformDenies("of the resolver's address only port " + strconv.Itoa(int(p.base.Resolver.Port())))
	}
	switch {
	case !f.Addr.IsValid():
		return platformDenies("no address")
	case f.Addr.Is6():
		return platformDenies("sandboxes have no IPv6")
	case f.Proto != TCP && f.Proto != UDP && f.Proto != ICMP:
		return platformDenies("protocols other than tcp, udp and icmp")
	case slices.Contains(p.base.Host, f.Addr):
		return platformDenies("the host's own address " + f.Addr.String())
	case f.Proto != ICMP && (f.Port == 53 || f.Port == 853):
		return platformDenies("names are looked up at the resolver only")
	}
	if p.proxy == ProxyAll && f.Proto != TCP {
		return platformDenies("the sandbox's egress proxy carries tcp only")
	}
	if !slices.ContainsFunc(p.base.Open, func(o netip.Prefix) bool { return o.Contains(f.Addr) }) {
		for _, d := range p.base.Deny {
			if d.Contains(f.Addr) {
				return platformDenies("deny " + d.String())
			}
		}
	}
	allowed := Decision{Allow: true, Layer: LayerPlatform}
	for _, l := range p.layers {
		d := l.decide(f)
		if !d.Allow {
			return d
		}
		if d.Rule != "" {
			allowed = d
		}
	}
	return allowed
}

func (l Layer) decide(f Flow) Decision {
	for _, e := range l.Allow {
		if e.matches(f) {
			return Decision{Allow: true, Layer: l.Name, Rule: "allow " + e.Text}
		}
	}
	for _, e := range l.Deny {
		if e.matches(f) {
			return Decision{Layer: l.Name, Rule: "deny " + e.Text}
		}
	}
	return l.otherwise()
}

// otherwise is the layer's answer for what none of its entries names.
func (l Layer) otherwise() Decision {
	if !l.Internet {
		return Decision{Layer: l.Name, Rule: "no internet access"}
	}
	return Decision{Allow: true, Layer: l.Name}
}

// DecideName says whether a sandbox with this policy may look up a name. A closed layer lets only allowed names be known: a
// query carries data out. The name must be as ParseName returns it.
func (p *Policy) DecideName(name string) Decision {
	allowed := Decision{Allow: true, Layer: LayerPlatform}
	for _, l := range p.layers {
		d := l.decideName(name)
		if !d.Allow {
			return d
		}
		if d.Rule != "" {
			allowed = d
		}
	}
	return allowed
}

func (l Layer) decideName(name string) Decision {
	for _, e := range l.Allow {
		if e.MatchName(name) {
			return Decision{Allow: true, Layer: l.Name, Rule: "allow " + e.Text}
		}
	}
	for _, e := range l.Deny {
		if e.MatchName(name) || e.everything() {
			return Decision{Layer: l.Name, Rule: "deny " + e.Text}
		}
	}
	return l.otherwise()
}

// DeniesName returns the rule of an entry that denies a name as such, and whether there is one.
func (p *Policy) DeniesName(name string) (Decision, bool) {
	for _, l := range p.layers {
		if slices.ContainsFunc(l.Allow, func(e Entry) bool { return e.MatchName(name) }) {
			continue
		}
		if i := slices.IndexFunc(l.Deny, func(e Entry) bool { return e.MatchName(name) }); i >= 0 {
			return Decision{Layer: l.Name, Rule: "deny " + l.Deny[i].Text}, true
		}
	}
	return Decision{}, false
}

// ByName reports whether some layer allows destinations by name: then connections are worth looking into, since many names
// share an address.
func (p *Policy) ByName() bool {
	return slices.ContainsFunc(p.layers, func(l Layer) bool {
		return slices.ContainsFunc(l.Allow, func(e Entry) bool { return e.Name != "" })
	})
}
