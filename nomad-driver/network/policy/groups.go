package policy

import (
	"cmp"
	"net/netip"
	"slices"
)

// Group are the entries of one list of a layer that have the same protocol and ports: what the firewall makes one set of.
type Group struct {
	Proto    Proto
	Ports    []Ports
	Prefixes []netip.Prefix // of IPv4, sorted, without overlap
	Names    []Entry        // their addresses come with the resolver's answers
}

// Groups returns a list of entries as groups, in the order of first mention. IPv6 is left out: sandboxes have none.
func Groups(list []Entry) []Group {
	var groups []Group
	for _, e := range list {
		if e.Prefix.IsValid() && e.Prefix.Addr().Is6() {
			continue
		}
		i := slices.IndexFunc(groups, func(g Group) bool { return g.Proto == e.Proto && slices.Equal(g.Ports, e.Ports) })
		if i < 0 {
			i = len(groups)
			groups = append(groups, Group{Proto: e.Proto, Ports: e.Ports})
		}
		if e.Name != "" {
			groups[i].Names = append(groups[i].Names, e)
		} else {
			groups[i].Prefixes = append(groups[i].Prefixes, e.Prefix)
		}
	}
	for i := range groups {
		groups[i].Prefixes = Merge(groups[i].Prefixes)
	}
	return groups
}

// Matches reports whether a name is one of the group's.
func (g Group) Matches(name string) bool {
	return slices.ContainsFunc(g.Names, func(e Entry) bool { return e.MatchName(name) })
}

// Merge sorts prefixes and drops those that lie within another.
func Merge(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	merged := list[:0]
	for _, p := range list {
		if n := len(merged); n > 0 && merged[n-1].Contains(p.Addr()) {
			continue
		}
		merged = append(merged, p)
	}
	return merged
}
