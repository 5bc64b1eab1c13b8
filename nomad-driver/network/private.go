package network

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
)

// Membership is a slot's place in a private network: its members reach each other, and find each other by name.
type Membership struct {
	Network string // unique on the node
	Short   string // the name of the network that its members use
	Name    string // of this member; several may have the same
}

// Member is one of a private network.
type Member struct {
	Membership
	Addr netip.Addr // by which the others reach it
}

// private knows who is in which private network.
type private struct {
	mu      sync.Mutex // also held while the firewall is told
	members map[int][]Membership
	slots   map[int]firewall.Slot
}

// Join replaces the private networks that a slot is in. Connections to those who are no members of the same network any more end. It returns
// how many.
func (p *Pool) Join(s *Slot, in []Membership) (cut int, err error) {
	x := &p.private
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(in) == 0 && len(x.members[s.Number]) == 0 {
		return 0, nil
	}
	var peers []firewall.Slot
	for number, list := range x.members {
		if number != s.Number && shares(list, in) {
			peers = append(peers, x.slots[number])
		}
	}
	if cut, err = p.fw.SetPeers(s.Firewall(), peers); err != nil {
		return cut, err
	}
	if len(in) == 0 {
		delete(x.members, s.Number)
		delete(x.slots, s.Number)
		return cut, nil
	}
	x.members[s.Number], x.slots[s.Number] = slices.Clone(in), s.Firewall()
	return cut, nil
}

// part takes a slot that is given back out of its networks; its rules go with it.
func (x *private) part(number int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.members, number)
	delete(x.slots, number)
}

func shares(a, b []Membership) bool {
	return slices.ContainsFunc(a, func(m Membership) bool {
		return slices.ContainsFunc(b, func(n Membership) bool { return n.Network == m.Network })
	})
}

// Members returns those of the networks that a slot is in, itself among them, by network and name.
func (p *Pool) Members(s *Slot) []Member {
	x := &p.private
	x.mu.Lock()
	defer x.mu.Unlock()
	own := x.members[s.Number]
	var all []Member
	for number, list := range x.members {
		for _, m := range list {
			if slices.ContainsFunc(own, func(o Membership) bool { return o.Network == m.Network }) {
				all = append(all, Member{Membership: m, Addr: x.slots[number].Addr})
			}
		}
	}
	slices.SortFunc(all, func(a, b Member) int {
		return cmp.Or(strings.Compare(a.Short, b.Short), strings.Compare(a.Name, b.Name), a.Addr.Compare(b.Addr))
	})
	return all
}

// Lookup answers a slot's question for a name: NAME or NAME.NETWORK of a member, in lower case. known is true where the name is none that
// others may be asked for, also where nobody has it.
func (p *Pool) Lookup(s *Slot, name string) (addrs []netip.Addr, known bool) {
	host, network, full := strings.Cut(name, ".")
	for _, m := range p.Members(s) {
		if full && m.Short != network {
			continue
		}
		known = known || full
		if m.Name == host && !slices.Contains(addrs, m.Addr) {
			addrs = append(addrs, m.Addr)
		}
	}
	return addrs, known || len(addrs) > 0
}

// Peer returns the member at an address that a slot reaches since both are in a network.
func (p *Pool) Peer(s *Slot, addr netip.Addr) (Member, bool) {
	for _, m := range p.Members(s) {
		if m.Addr == addr && addr != s.Addr {
			return m, true
		}
	}
	return Member{}, false
}
