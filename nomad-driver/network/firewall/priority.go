package firewall

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// SetPriority has a slot's packets carry a priority, by which traffic control sorts them: what it sends to the world, and what it is sent by anybody but
// other slots.
func (f *Firewall) SetPriority(s Slot, priority uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if had, ok := f.sorted[s.Number]; ok && had == priority {
		return nil
	}
	err := f.batch(func(c *nftables.Conn) error {
		return c.SetAddElements(f.sets.priorities, []nftables.SetElement{{Key: ifKey(s.Index), Val: binaryutil.NativeEndian.PutUint32(priority)}})
	})
	if err != nil {
		return fmt.Errorf("firewall: slot %d: priority: %w", s.Number, err)
	}
	f.sorted[s.Number] = priority
	return nil
}

// forgetPriority removes a slot's priority, if it has one. f.mu is held.
func (f *Firewall) forgetPriority(s Slot) error {
	if _, ok := f.sorted[s.Number]; !ok {
		return nil
	}
	delete(f.sorted, s.Number)
	err := f.batch(func(c *nftables.Conn) error {
		return c.SetDeleteElements(f.sets.priorities, []nftables.SetElement{{Key: ifKey(s.Index)}})
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// sortRules give packets their priority, where they leave the host. What a process inside has asked for does not count.
func (f *Firewall) sortRules(c *nftables.Conn, ch *nftables.Chain) {
	if !f.cfg.Sorted {
		return
	}
	priority := func(key expr.MetaKey) match {
		return match{
			meta(key, reg0),
			&expr.Lookup{SourceRegister: reg0, DestRegister: reg1, IsDestRegSet: true, SetName: f.sets.priorities.Name, SetID: f.sets.priorities.ID},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg1},
		}
	}
	f.add(c, ch, rule(f.fromSlot(), notPrefix(f.toSlot()), priority(expr.MetaKeyIIF)))
	f.add(c, ch, rule(f.toSlot(), notPrefix(f.fromSlot()), priority(expr.MetaKeyOIF)))
	none := match{&expr.Immediate{Register: reg1, Data: make([]byte, 4)}, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg1}}
	f.add(c, ch, rule(f.fromSlot(), f.toSlot(), none))
}
