package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// slotRules are the chains and sets of one sandbox's policy.
type slotRules struct {
	slot   Slot
	policy *policy.Policy
	gen    int      // makes the names of a new policy's chains others than those of the old one
	chains []string // the first is the one that the map leads to
	sets   []*nftables.Set
	pins   []pinSet
	pinned map[netip.Addr]map[string]time.Time // the names that an address was pinned for, and until when
}

// namesSuffix ends the names of sets that take the addresses of names.
const namesSuffix = "-names"

// pinSet is a set that takes the addresses of the names of a group.
type pinSet struct {
	group policy.Group
	set   *nftables.Set
}

// Apply replaces the rules of a slot in one transaction: new connections meet the new ones at once. Connections that exist
// go on until Cut. Addresses that were pinned for names which the new policy still allows stay.
func (f *Firewall) Apply(s Slot, p *policy.Policy) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.slots[s.Number]
	r := &slotRules{slot: s, policy: p, pinned: map[netip.Addr]map[string]time.Time{}}
	if old != nil {
		r.gen, r.pinned = old.gen+1, old.pinned
	} else {
		var err error
		if old, err = f.inherit(r); err != nil {
			return fmt.Errorf("firewall: slot %d: %w", s.Number, err)
		}
	}
	err := f.batch(func(c *nftables.Conn) error {
		if err := f.writeRules(c, r); err != nil {
			return err
		}
		lead := chainOpen
		if len(r.chains) > 0 {
			lead = r.chains[0]
		}
		if p.Proxied() == policy.ProxyAll { // what the proxy carries does not come here
			lead = ReasonPlatform.chain()
		}
		// An element of a map is not overwritten; both steps are of one transaction.
		err := errors.Join(
			c.SetDeleteElements(f.sets.policies, []nftables.SetElement{{Key: ifKey(s.Index)}}),
			c.SetAddElements(f.sets.policies, []nftables.SetElement{{Key: ifKey(s.Index), VerdictData: goVerdict(lead)}}),
			f.redirect(c, s, p.Proxied()),
		)
		if old != nil {
			f.dropRules(c, old)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("firewall: slot %d: policy: %w", s.Number, err)
	}
	f.slots[s.Number] = r
	return nil
}

// inherit takes over what an earlier daemon wrote for a slot: it returns the chains and sets to remove, and notes in r the pinned
// addresses and a generation that no chain has.
func (f *Firewall) inherit(r *slotRules) (*slotRules, error) {
	c, err := f.conn()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	old := &slotRules{slot: r.slot}
	prefix := fmt.Sprintf("s%d-g", r.slot.Number)
	for _, ch := range chains {
		if ch.Table.Name != f.table.Name || !strings.HasPrefix(ch.Name, prefix) {
			continue
		}
		var gen, layer int
		if n, _ := fmt.Sscanf(ch.Name[len(prefix):], "%d-l%d", &gen, &layer); n == 2 {
			r.gen = max(r.gen, gen+1)
			old.chains = append(old.chains, ch.Name)
		}
	}
	if len(old.chains) == 0 {
		return nil, nil
	}
	sets, err := c.GetSets(f.table)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for _, s := range sets {
		if !strings.HasPrefix(s.Name, prefix) {
			continue
		}
		old.sets = append(old.sets, s)
		if !strings.HasSuffix(s.Name, namesSuffix) {
			continue
		}
		elems, err := c.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		for _, e := range elems {
			if addr, ok := netip.AddrFromSlice(e.Key); ok {
				for name := range strings.SplitSeq(e.Comment, " ") {
					r.pin(addr, name, now.Add(e.Expires))
				}
			}
		}
	}
	return old, nil
}

func (r *slotRules) pin(a netip.Addr, name string, until time.Time) {
	if name == "" {
		return
	}
	if r.pinned[a] == nil {
		r.pinned[a] = map[string]time.Time{}
	}
	if until.After(r.pinned[a][name]) {
		r.pinned[a][name] = until
	}
}

// writeRules queues the chains of a policy: one for each layer, which returns what it allows to the next.
func (f *Firewall) writeRules(c *nftables.Conn, r *slotRules) error {
	layers := r.policy.Layers()
	for i := range layers {
		r.chains = append(r.chains, fmt.Sprintf("s%d-g%d-l%d", r.slot.Number, r.gen, i))
	}
	// A chain must be there before a rule leads to it.
	for _, name := range r.chains {
		c.AddChain(&nftables.Chain{Table: f.table, Name: name})
	}
	for i, l := range layers {
		next := chainOpen
		if i+1 < len(layers) {
			next = r.chains[i+1]
		}
		for j, g := range policy.Groups(l.Allow) {
			if err := f.writeGroup(c, r, r.chains[i], fmt.Sprintf("%s-a%d", r.chains[i], j), g, goTo(next)); err != nil {
				return err
			}
		}
		for j, g := range policy.Groups(l.Deny) {
			g.Names = nil // a name is denied where it is looked up
			if err := f.writeGroup(c, r, r.chains[i], fmt.Sprintf("%s-d%d", r.chains[i], j), g, goTo(ReasonPolicy.chain())); err != nil {
				return err
			}
		}
		if !l.Internet {
			next = ReasonPolicy.chain()
		}
		f.addTo(c, r.chains[i], goTo(next))
	}
	return nil
}

func (f *Firewall) writeGroup(c *nftables.Conn, r *slotRules, chain, name string, g policy.Group, then match) error {
	var matches []match
	if len(g.Prefixes) > 0 {
		if g.Prefixes[0].Bits() == 0 {
			matches = append(matches, match{})
		} else {
			s := f.set(nftables.Set{Name: name, Interval: true, KeyType: nftables.TypeIPAddr})
			if err := c.AddSet(s, intervals(g.Prefixes)); err != nil {
				return err
			}
			r.sets = append(r.sets, s)
			matches = append(matches, inSet(offDestination, s))
		}
	}
	if len(g.Names) > 0 {
		s := f.set(nftables.Set{Name: name + namesSuffix, HasTimeout: true, KeyType: nftables.TypeIPAddr, KeyByteOrder: binaryutil.BigEndian})
		if err := c.AddSet(s, r.elements(g, time.Now())); err != nil {
			return err
		}
		r.sets, r.pins = append(r.sets, s), append(r.pins, pinSet{g, s})
		f.writeMatches(c, chain, g, nameProtos(g), inSet(offDestination, s), then)
	}
	for _, m := range matches {
		f.writeMatches(c, chain, g, groupProtos(g), m, then)
	}
	return nil
}

func (f *Firewall) writeMatches(c *nftables.Conn, chain string, g policy.Group, protos []match, m, then match) {
	for _, p := range protos {
		if len(g.Ports) == 0 {
			f.addTo(c, chain, p, m, then)
		}
		for _, ports := range g.Ports {
			f.addTo(c, chain, p, portRange(ports), m, then)
		}
	}
}

// groupProtos returns how to match the group's protocol: ports need one that has them.
func groupProtos(g policy.Group) []match {
	switch {
	case g.Proto != policy.Any:
		return []match{proto(g.Proto)}
	case len(g.Ports) > 0:
		return []match{proto(policy.TCP), proto(policy.UDP)}
	}
	return []match{{}}
}

// nameProtos returns how to match the protocols of a group's names: QUIC, which hides the name that it is for, is none of them.
func nameProtos(g policy.Group) []match {
	udp := append(proto(policy.UDP), transport(offPort, 2, reg0), cmp(expr.CmpOpNeq, reg0, binary.BigEndian.AppendUint16(nil, policy.PortQUIC)))
	switch {
	case g.Proto == policy.UDP:
		return []match{udp}
	case g.Proto != policy.Any:
		return []match{proto(g.Proto)}
	case len(g.Ports) > 0:
		return []match{proto(policy.TCP), udp}
	}
	return []match{proto(policy.TCP), proto(policy.ICMP), udp}
}

// maxComment bounds the comment of an element, which the kernel keeps 255 bytes of.
const maxComment = 200

// elements returns the addresses that are pinned for the names of a group.
func (r *slotRules) elements(g policy.Group, now time.Time) []nftables.SetElement {
	var elems []nftables.SetElement
	for addr, names := range r.pinned {
		var until time.Time
		var comment string
		for name, t := range names {
			if !g.Matches(name) || !t.After(now) {
				continue
			}
			if t.After(until) {
				until = t
			}
			if len(comment)+len(name) < maxComment {
				comment += " " + name
			}
		}
		if left := until.Sub(now); left > 0 {
			// The comment is for the next daemon.
			elems = append(elems, nftables.SetElement{Key: addr.AsSlice(), Timeout: max(left, time.Second), Comment: strings.TrimPrefix(comment, " ")})
		}
	}
	return elems
}

// dropRules queues the removal of a policy's chains and sets.
func (f *Firewall) dropRules(c *nftables.Conn, r *slotRules) {
	for _, name := range r.chains {
		c.FlushChain(&nftables.Chain{Table: f.table, Name: name})
	}
	for _, name := range r.chains {
		c.DelChain(&nftables.Chain{Table: f.table, Name: name})
	}
	for _, s := range r.sets {
		c.DelSet(s)
	}
}

// maxPins bounds the addresses that one sandbox has pinned at the same time.
const maxPins = 4096

// ErrTooManyPins tells that a sandbox has as many addresses pinned as it may.
var ErrTooManyPins = errors.New("too many addresses are pinned")

// pinGrace is how much longer an address stays than was asked: a sandbox connects a moment after it was told, and what lasts that much
// longer anyway is not written again.
const pinGrace = 30 * time.Second

// Pin lets a sandbox reach addresses for a time, as far as its policy allows the name that they are the answer for. The
// name must be as policy.ParseName returns it. Addresses that the platform denies, and those of IPv6, are left out, and
// returned is what is left: an answer should have no others.
func (f *Firewall) Pin(s Slot, name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var good []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() && f.reachable(a) {
			good = append(good, a)
		}
	}
	r := f.slots[s.Number]
	if r == nil || len(good) == 0 {
		return good, nil
	}
	now := time.Now()
	r.forget(now)
	if !slices.ContainsFunc(good, func(a netip.Addr) bool { return r.pinned[a][name].Before(now.Add(ttl)) }) {
		return good, nil
	}
	if len(r.pinned)+len(good) > maxPins {
		return nil, fmt.Errorf("pin %s for slot %d: %w", name, s.Number, ErrTooManyPins)
	}
	var sets []pinSet
	for _, p := range r.pins {
		if p.group.Matches(name) {
			sets = append(sets, p)
		}
	}
	if len(sets) == 0 {
		return good, nil
	}
	for _, a := range good {
		r.pin(a, name, now.Add(ttl+pinGrace))
	}
	err := f.batch(func(c *nftables.Conn) error {
		for _, p := range sets {
			elems := slices.DeleteFunc(r.elements(p.group, now), func(e nftables.SetElement) bool {
				a, _ := netip.AddrFromSlice(e.Key)
				return !slices.Contains(good, a)
			})
			// Added first, so that the removal finds it; added again, since an element's time does not change.
			if err := errors.Join(c.SetAddElements(p.set, elems), c.SetDeleteElements(p.set, elems), c.SetAddElements(p.set, elems)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pin %s for slot %d: %w", name, s.Number, err)
	}
	return good, nil
}

// Names returns the names that an address is pinned for.
func (f *Firewall) Names(s Slot, a netip.Addr) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.slots[s.Number]
	if r == nil {
		return nil
	}
	now := time.Now()
	var names []string
	for name, until := range r.pinned[a] {
		if until.After(now) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (r *slotRules) forget(now time.Time) {
	for a, names := range r.pinned {
		for name, until := range names {
			if !until.After(now) {
				delete(names, name)
			}
		}
		if len(names) == 0 {
			delete(r.pinned, a)
		}
	}
}

// reachable reports whether the platform lets a sandbox have an address: names that answer with others are rebinding.
func (f *Firewall) reachable(a netip.Addr) bool {
	has := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.ContainsFunc(f.cfg.Base.Open, has) || !slices.ContainsFunc(f.cfg.Base.Deny, has) && !slices.Contains(f.cfg.Base.Host, a)
}

// Allow lets sandboxes reach TCP ports of Config.Self beside the resolver's; those of earlier calls stay.
func (f *Firewall) Allow(ports ...uint16) error {
	elems := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		elems[i].Key = binary.BigEndian.AppendUint16(nil, p)
	}
	return f.batch(func(c *nftables.Conn) error { return addElements(c, f.sets.services, elems) })
}
