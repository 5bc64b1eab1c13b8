package firewall

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// Sweep removes what the table has of slots other than these: elements of its maps, chains, sets and counters.
func (f *Firewall) Sweep(keep []Slot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	indices, numbers := map[uint32]bool{}, map[int]bool{}
	for _, s := range keep {
		indices[uint32(s.Index)] = true //nolint:gosec // an interface's index
		numbers[s.Number] = true
	}
	c, err := f.conn()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range []*nftables.Set{f.sets.addrs, f.sets.policies, f.sets.web, f.sets.all, f.sets.priorities, f.sets.meterIn, f.sets.meterOut} {
		elems, err := c.GetSetElements(m)
		if err != nil {
			return fmt.Errorf("firewall: sweep: %w", err)
		}
		var gone []nftables.SetElement
		for _, e := range elems {
			if !indices[binaryutil.NativeEndian.Uint32(e.Key)] {
				gone = append(gone, nftables.SetElement{Key: e.Key})
			}
		}
		if len(gone) > 0 {
			errs = append(errs, f.batch(func(c *nftables.Conn) error { return c.SetDeleteElements(m, gone) }))
		}
	}
	errs = append(errs, f.sweepPeers(c, keep))
	old := &slotRules{}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("firewall: sweep: %w", err)
	}
	for _, ch := range chains {
		if n, ok := slotOf(ch.Name); ok && ch.Table.Name == f.table.Name && !numbers[n] {
			old.chains = append(old.chains, ch.Name)
		}
	}
	sets, err := c.GetSets(f.table)
	if err != nil {
		return fmt.Errorf("firewall: sweep: %w", err)
	}
	for _, s := range sets {
		if n, ok := slotOf(s.Name); ok && !numbers[n] {
			old.sets = append(old.sets, s)
		}
	}
	objects, err := c.GetNamedObjects(f.table)
	if err != nil {
		return fmt.Errorf("firewall: sweep: %w", err)
	}
	errs = append(errs, f.batch(func(c *nftables.Conn) error {
		f.dropRules(c, old)
		for _, o := range objects {
			q, ok := o.(*nftables.NamedObj)
			if !ok {
				continue
			}
			if n, ok := slotOf(q.Name); ok && !numbers[n] {
				c.DeleteObject(&nftables.QuotaObj{Table: f.table, Name: q.Name})
			}
		}
		return nil
	}))
	return errors.Join(errs...)
}

// slotOf returns the number of the slot that a chain or a set belongs to.
func slotOf(name string) (int, bool) {
	var number, gen int
	n, _ := fmt.Sscanf(name, "s%d-g%d-", &number, &gen)
	return number, n == 2
}
