// Package policy is what a sandbox may reach: allow and deny lists of addresses, ranges and names with protocols and ports,
// written as text, and the answer for one destination with the rule that gave it.
//
// It is pure: it reads nothing of the machine and changes nothing. The firewall enforces a Policy in the kernel, the resolver
// and the egress proxy ask it about names; all of them, and the one who explains, use the same code here.
//
// A Policy has layers (tenant, template, sandbox). Each can only narrow: a destination is allowed where every layer allows it.
// Within a layer an allow entry wins over a deny entry, whatever their order and length, and what no entry names is allowed
// unless the layer has no internet. Before all layers come the denies of the platform (Base), which no layer can lift.
package policy

import (
	"net/netip"
	"slices"
)

// Everything is the range that a layer denies to be closed but for what it allows.
const Everything = "0.0.0.0/0"

// MaxEntries bounds each list of a Spec.
const MaxEntries = 1000

// Spec is one layer as written. The zero Spec allows all that the platform does.
type Spec struct {
	// Internet false denies what no allow entry names; nil is true.
	Internet *bool    `json:"internet,omitempty"`
	Allow    []string `json:"allow,omitempty"` // see ParseEntry
	Deny     []string `json:"deny,omitempty"`
}

// Layer is a Spec that was parsed.
type Layer struct {
	Name     string // who wrote it: names it in a Decision
	Internet bool
	Allow    []Entry
	Deny     []Entry
}

// ParseLayer parses a Spec. An error is an *Error, which names the list and the entry.
func ParseLayer(name string, s Spec) (Layer, error) {
	l := Layer{Name: name, Internet: s.Internet == nil || *s.Internet}
	var err error
	if l.Allow, err = parseList("allow", s.Allow); err != nil {
		return Layer{}, err
	}
	if l.Deny, err = parseList("deny", s.Deny); err != nil {
		return Layer{}, err
	}
	return l, nil
}

func parseList(field string, list []string) ([]Entry, error) {
	if len(list) > MaxEntries {
		return nil, &Error{Field: field, Text: tooMany(len(list))}
	}
	entries := make([]Entry, 0, len(list))
	for _, s := range list {
		e, err := ParseEntry(s)
		if err != nil {
			return nil, &Error{Field: field, Entry: s, Text: err.Error()}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// closed reports whether the layer denies whatever it does not allow.
func (l Layer) closed() bool {
	return !l.Internet || slices.ContainsFunc(l.Deny, Entry.everything)
}

// Base are the denies of the platform.
type Base struct {
	Deny []netip.Prefix // nil: DefaultDeny
	// Open are exceptions from Deny that the operator of a node makes: a mirror in the internal network, say. Layers apply to
	// them as to the rest.
	Open []netip.Prefix
	// Host are the addresses of the machine itself; nothing but Resolver is reachable there.
	Host []netip.Addr
	// Resolver is the only name server. The zero AddrPort: there is none.
	Resolver netip.AddrPort
}

// DefaultDeny is what no sandbox reaches: this network, private and shared ranges, loopback, link-local with the metadata
// services of clouds, ranges for protocols and benchmarks, multicast, reserved addresses and broadcast.
func DefaultDeny() []netip.Prefix { return slices.Clone(defaultDeny) }

var defaultDeny = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
)

func prefixes(list ...string) []netip.Prefix {
	p := make([]netip.Prefix, len(list))
	for i, s := range list {
		p[i] = netip.MustParsePrefix(s)
	}
	return p
}

// Policy is a Base with layers above it. It does not change: many may use it at once.
type Policy struct {
	base   Base
	layers []Layer
	proxy  Proxied
}

// Proxied says which connections go through the node's proxy.
type Proxied int

// What goes through the proxy.
const (
	ProxyNothing Proxied = iota
	ProxyWeb             // TCP to the ports 80 and 443
	ProxyAll             // TCP; and nothing else leaves the sandbox
)

// Carries reports whether f goes through the proxy.
func (x Proxied) Carries(f Flow) bool {
	return f.Proto == TCP && (x == ProxyAll || x == ProxyWeb && (f.Port == 80 || f.Port == 443))
}

// Through returns the policy with at least x going through the proxy.
func (p *Policy) Through(x Proxied) *Policy {
	q := *p
	q.proxy = max(q.proxy, x)
	return &q
}

// Proxied returns what goes through the proxy: of a policy with names the web, since many names share an address.
func (p *Policy) Proxied() Proxied {
	if p.ByName() {
		return max(p.proxy, ProxyWeb)
	}
	return p.proxy
}

// New returns the policy of some layers, outermost first.
func New(base Base, layers ...Layer) *Policy {
	if base.Deny == nil {
		base.Deny = defaultDeny
	}
	return &Policy{base: base, layers: slices.Clone(layers)}
}

// Layers returns the layers, outermost first. They must not be changed.
func (p *Policy) Layers() []Layer { return p.layers }

// Base returns the denies of the platform. They must not be changed.
func (p *Policy) Base() Base { return p.base }

// Notes says what in the policy has no effect, for whoever wrote it: entries that contradict others or the platform.
func (p *Policy) Notes() []string {
	var notes []string
	for _, l := range p.layers {
		for _, a := range l.Allow {
			switch {
			case a.Prefix.IsValid() && a.Prefix.Addr().Is6():
				notes = append(notes, note(l, "allow", a, "sandboxes have no IPv6"))
			case a.Prefix.IsValid() && p.denied(a.Prefix):
				notes = append(notes, note(l, "allow", a, "the platform denies all of it"))
			case a.Name != "" && !l.closed():
				notes = append(notes, note(l, "allow", a, "the layer allows everything else as well: deny "+Everything+" to allow only this"))
			}
			for _, d := range l.Deny {
				if a.covers(d) {
					notes = append(notes, note(l, "deny", d, "allow "+a.Text+" wins over it"))
				}
			}
		}
	}
	return notes
}

func note(l Layer, list string, e Entry, why string) string {
	return l.Name + ": " + list + " " + e.Text + " has no effect: " + why
}

// denied reports whether the platform denies all of r.
func (p *Policy) denied(r netip.Prefix) bool {
	if slices.ContainsFunc(p.base.Open, r.Overlaps) {
		return false
	}
	return slices.ContainsFunc(p.base.Deny, func(d netip.Prefix) bool { return d.Bits() <= r.Bits() && d.Contains(r.Addr()) })
}
