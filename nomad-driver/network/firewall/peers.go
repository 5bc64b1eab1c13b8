package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// SetPeers replaces whom a slot reaches among the other ones, and who reaches it: that is always both. Connections with those who are it no
// longer end; it returns how many.
func (f *Firewall) SetPeers(s Slot, peers []Slot) (cut int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.peers[s.Number]
	has := func(list []Slot, p Slot) bool {
		return slices.ContainsFunc(list, func(q Slot) bool { return q.Number == p.Number })
	}
	var gone, fresh []Slot
	for _, p := range old {
		if !has(peers, p) {
			gone = append(gone, p)
		}
	}
	for _, p := range peers {
		if !has(old, p) {
			fresh = append(fresh, p)
		}
	}
	if len(gone) == 0 && len(fresh) == 0 {
		return 0, nil
	}
	err = f.batch(func(c *nftables.Conn) error {
		var errs []error
		for _, p := range fresh {
			errs = append(errs, c.SetAddElements(f.sets.peers, pair(s, p)))
		}
		for _, p := range gone { // added so that there is one to remove: an earlier daemon may have done it
			errs = append(errs, c.SetAddElements(f.sets.peers, pair(s, p)), c.SetDeleteElements(f.sets.peers, pair(s, p)))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return 0, fmt.Errorf("firewall: slot %d: peers: %w", s.Number, err)
	}
	f.peers[s.Number] = slices.Clone(peers)
	for _, p := range gone {
		f.peers[p.Number] = slices.DeleteFunc(f.peers[p.Number], func(q Slot) bool { return q.Number == s.Number })
	}
	for _, p := range fresh {
		f.peers[p.Number] = append(f.peers[p.Number], s)
	}
	for _, p := range gone {
		for _, way := range []struct{ from, to Slot }{{s, p}, {p, s}} {
			n, cerr := f.each(way.from, func(c Connection) bool { return c.Flow.Addr == way.to.Addr })
			cut, err = cut+n, errors.Join(err, cerr)
		}
	}
	return cut, err
}

// IsPeer reports whether a slot reaches the one with an address.
func (f *Firewall) IsPeer(s Slot, a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.peers[s.Number], func(p Slot) bool { return p.Addr == a })
}

// pair are the elements by which two slots reach each other.
func pair(a, b Slot) []nftables.SetElement {
	return []nftables.SetElement{{Key: peerKey(a, b)}, {Key: peerKey(b, a)}}
}

func peerKey(from, to Slot) []byte { return append(ifKey(from.Index), to.Addr.AsSlice()...) }

// dropPeers removes what leads from and to a slot that is detached. f.mu is held.
func (f *Firewall) dropPeers(s Slot) error {
	list := f.peers[s.Number]
	delete(f.peers, s.Number)
	for _, p := range list {
		f.peers[p.Number] = slices.DeleteFunc(f.peers[p.Number], func(q Slot) bool { return q.Number == s.Number })
	}
	if len(list) == 0 {
		return nil
	}
	err := f.batch(func(c *nftables.Conn) error {
		var errs []error
		for _, p := range list {
			errs = append(errs, c.SetDeleteElements(f.sets.peers, pair(s, p)))
		}
		return errors.Join(errs...)
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return err
}

// sweepPeers removes the pairs that nobody has named since the daemon started. f.mu is held.
func (f *Firewall) sweepPeers(c *nftables.Conn, keep []Slot) error {
	elems, err := c.GetSetElements(f.sets.peers)
	if err != nil {
		return fmt.Errorf("firewall: sweep: %w", err)
	}
	byIndex := map[uint32]Slot{}
	for _, s := range keep {
		byIndex[uint32(s.Index)] = s //nolint:gosec // an interface's index
	}
	var gone []nftables.SetElement
	for _, e := range elems {
		if len(e.Key) < 8 {
			continue
		}
		s, ok := byIndex[binaryutil.NativeEndian.Uint32(e.Key)]
		to, _ := netip.AddrFromSlice(e.Key[4:8])
		if !ok || !slices.ContainsFunc(f.peers[s.Number], func(p Slot) bool { return p.Addr == to }) {
			gone = append(gone, nftables.SetElement{Key: e.Key})
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return f.batch(func(c *nftables.Conn) error { return c.SetDeleteElements(f.sets.peers, gone) })
}
