package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Meter is what a slot's link loses on purpose, and how much it may carry. The zero Meter does neither.
type Meter struct {
	LossIn, LossOut float64 // shares of packets to and from the sandbox, 0 to 1
	Quota           uint64  // bytes of IP packets in both directions together; 0: without end
}

// lossSteps is what a share of packets is counted in.
const lossSteps = 1_000_000

func (s Slot) meterChain(in bool) string {
	if in {
		return fmt.Sprintf("s%d-g0-meter-in", s.Number)
	}
	return fmt.Sprintf("s%d-g0-meter-out", s.Number)
}

// quotaObject counts a slot's bytes.
func (f *Firewall) quotaObject(s Slot) *nftables.QuotaObj {
	return &nftables.QuotaObj{Table: f.table, Name: fmt.Sprintf("s%d-g0-quota", s.Number), Over: true}
}

// Quota returns how many bytes a slot may carry and has carried; no limit where it has no quota.
func (f *Firewall) Quota(s Slot) (limit, used uint64, err error) {
	c, err := f.conn()
	if err != nil {
		return 0, 0, err
	}
	o, err := c.GetObject(f.quotaObject(s))
	if err == nil && o == nil || err != nil && strings.Contains(err.Error(), unix.ENOENT.Error()) { // the library does not wrap it
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("firewall: slot %d: quota: %w", s.Number, err)
	}
	q, ok := o.(*nftables.QuotaObj)
	if !ok {
		return 0, 0, fmt.Errorf("firewall: slot %d: quota is a %T", s.Number, o)
	}
	return q.Bytes, q.Consumed, nil
}

// SetMeter replaces a slot's meter in one transaction. Bytes go on from what the quota has counted, or where there is none yet from used; of
// those that pass in between some may be missing.
func (f *Firewall) SetMeter(s Slot, m Meter, used uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.setMeter(s, m, used)
}

func (f *Firewall) setMeter(s Slot, m Meter, used uint64) error {
	had, counted, err := f.Quota(s)
	if err != nil {
		return err
	}
	if had > 0 {
		used = counted
	}
	err = f.batch(func(c *nftables.Conn) error {
		// What is removed must be there: everything is added first.
		elems := []nftables.SetElement{{Key: ifKey(s.Index)}}
		var errs []error
		for _, d := range []struct {
			in   bool
			loss float64
			set  *nftables.Set
		}{{true, m.LossIn, f.sets.meterIn}, {false, m.LossOut, f.sets.meterOut}} {
			ch := f.chain(c, nftables.Chain{Name: s.meterChain(d.in)})
			elems[0].VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: ch.Name}
			errs = append(errs, c.SetAddElements(d.set, elems))
			if d.loss == 0 && m.Quota == 0 {
				errs = append(errs, c.SetDeleteElements(d.set, elems))
				c.DelChain(ch)
			}
		}
		if had > 0 {
			c.DeleteObject(f.quotaObject(s))
		}
		if m.Quota > 0 {
			q := f.quotaObject(s)
			q.Bytes, q.Consumed = m.Quota, used
			c.AddObj(q)
		}
		f.meterRules(c, s, true, m.LossIn, m.Quota)
		f.meterRules(c, s, false, m.LossOut, m.Quota)
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("firewall: slot %d: meter: %w", s.Number, err)
	}
	if m == (Meter{}) {
		delete(f.metered, s.Number)
	} else {
		f.metered[s.Number] = s
	}
	return nil
}

// meterRules queues what a slot's packets of one direction go through.
func (f *Firewall) meterRules(c *nftables.Conn, s Slot, in bool, loss float64, quota uint64) {
	ch := s.meterChain(in)
	if loss > 0 {
		f.addTo(c, ch, match{
			&expr.Numgen{Register: reg0, Modulus: lossSteps, Type: unix.NFT_NG_RANDOM},
			&expr.Byteorder{SourceRegister: reg0, DestRegister: reg0, Op: expr.ByteorderHton, Len: 4, Size: 4}, // numbers are compared as bytes
			cmp(expr.CmpOpLt, reg0, binary.BigEndian.AppendUint32(nil, uint32(math.Round(loss*lossSteps)))),
		}, verdict(expr.VerdictDrop))
	}
	if quota == 0 {
		return
	}
	over := match{&expr.Objref{Type: unix.NFT_OBJECT_QUOTA, Name: f.quotaObject(s).Name}}
	if in {
		f.addTo(c, ch, over, verdict(expr.VerdictDrop))
	} else {
		f.addTo(c, ch, over, goTo(ReasonQuota.chain()))
	}
}

// meters sends packets of slots with a meter through it. key is the interface of the slot.
func (f *Firewall) meters(key expr.MetaKey, s *nftables.Set) match {
	return match{meta(key, reg0), &expr.Lookup{
		SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Name, SetID: s.ID,
	}}
}
