package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// retryTime is how long the maker waits after a slot could not be made.
const retryTime = time.Second

// run makes slots and frees numbers until ctx ends.
func (p *Pool) run(ctx context.Context) {
	tick := time.NewTicker(max(p.cfg.Quiet/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		p.refill(ctx)
		select {
		case <-ctx.Done():
			return
		case <-p.want:
		case <-tick.C:
			if err := p.settle(time.Now()); err != nil {
				p.log.Error("network slots cannot be freed yet", "error", err)
			}
		}
	}
}

// refill makes slots until enough wait.
func (p *Pool) refill(ctx context.Context) {
	for ctx.Err() == nil && len(p.ready) < cap(p.ready) {
		number, ok := p.number()
		if !ok {
			return
		}
		s, err := p.make(number, nil)
		p.mu.Lock()
		p.fault = err
		if err != nil {
			p.live--
			p.resting[number] = resting{&Slot{Number: number, Link: p.cfg.linkName(number), Addr: p.address(number)}, time.Now()}
		}
		p.mu.Unlock()
		if err != nil {
			p.log.Error("network slot cannot be made", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(retryTime):
			}
			return
		}
		p.ready <- s // there is room: nobody else sends
	}
}

// number returns one that nothing uses.
func (p *Pool) number() (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live >= p.cfg.Max {
		return 0, false
	}
	if n := len(p.free); n > 0 {
		number := p.free[0]
		p.free = p.free[1:]
		p.live++
		return number, true
	}
	if p.next >= 1<<(32-p.prefix.Bits())-3 {
		return 0, false
	}
	p.next++
	p.live++
	return p.next - 1, true
}

// settle frees the numbers that have rested long enough: their links are gone, and no connection of theirs is left.
func (p *Pool) settle(now time.Time) error {
	p.mu.Lock()
	var due []*Slot
	for _, r := range p.resting {
		if now.Sub(r.since) >= p.cfg.Quiet {
			due = append(due, r.slot)
		}
	}
	p.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	slots := make([]firewall.Slot, len(due))
	for i, s := range due {
		slots[i] = s.Firewall()
	}
	if _, err := p.fw.CutAll(slots); err != nil {
		return err
	}
	var errs []error
	for _, s := range due {
		if err := p.deleteLink(s.Link); err != nil {
			errs = append(errs, err)
			continue
		}
		p.mu.Lock()
		delete(p.resting, s.Number)
		p.free = append(p.free, s.Number)
		p.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Recover takes over a slot that a sandbox of an earlier daemon has. It goes on with the rules it had.
func (p *Pool) Recover(r Ref) (*Slot, error) {
	link, err := p.host.LinkByName(p.cfg.linkName(r.Number))
	if err != nil {
		return nil, fmt.Errorf("network slot %d: %w", r.Number, err)
	}
	if link.Attrs().Index != r.Index || !p.prefix.Contains(p.address(r.Number)) {
		return nil, fmt.Errorf("network slot %d: its interface has index %d, the sandbox's had %d", r.Number, link.Attrs().Index, r.Index)
	}
	s := &Slot{Number: r.Number, Index: r.Index, Link: link.Attrs().Name, Addr: p.address(r.Number)}
	if p.uplink.in == nil { // or it was led to an ifb that is no more
		if err := p.scatter(s.Index); err != nil {
			return nil, fmt.Errorf("network slot %d: %w", r.Number, err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[r.Number] != nil {
		return nil, fmt.Errorf("network slot %d: two sandboxes have it", r.Number)
	}
	p.held[r.Number] = s
	p.live++
	p.free = slices.DeleteFunc(p.free, func(n int) bool { return n == r.Number }) // of an earlier call, for a higher number
	for ; p.next <= r.Number; p.next++ {
		if p.next != r.Number {
			p.free = append(p.free, p.next)
		}
	}
	return s, nil
}

// Sweep removes the node's interfaces that no slot has, after Recover and before Start, and the rules of them.
func (p *Pool) Sweep() (int, error) {
	links, err := dump(p.host.LinkList)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	kept := map[string]bool{}
	slots := make([]firewall.Slot, 0, len(p.held))
	for _, s := range p.held {
		kept[s.Link] = true
		slots = append(slots, s.Firewall())
	}
	p.mu.Unlock()
	removed := 0
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; hasPrefix(name, p.cfg.linkPrefix()) && !kept[name] {
			errs = append(errs, p.deleteLink(name))
			removed++
		}
	}
	return removed, errors.Join(append(errs, p.fw.Sweep(slots))...)
}

// Apply gives a slot a policy and ends the connections that it forbids.
func (p *Pool) Apply(s *Slot, pol *policy.Policy) (cut int, err error) {
	fw := s.Firewall()
	if err := p.fw.Apply(fw, pol); err != nil {
		return 0, err
	}
	return p.fw.Cut(fw, func(c firewall.Connection) bool {
		f := c.Flow
		if f.Addr == p.self {
			return false // the platform's own services
		}
		if p.fw.IsPeer(fw, f.Addr) {
			return false // of a private network
		}
		if through := pol.Proxied().Carries(f); through || c.Proxied {
			return through != c.Proxied // what the proxy has is its own to end
		}
		f.Names = p.fw.Names(fw, f.Addr)
		return !pol.Decide(f).Allow
	})
}

// Counts says how many slots are ready, in use, and resting.
func (p *Pool) Counts() (ready, used, rest int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready), len(p.held), len(p.resting)
}
