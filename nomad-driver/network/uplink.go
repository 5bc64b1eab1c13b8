package network

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// Uplink is the link by which the machine reaches the world, for sandboxes to share it out by their classes. The zero Uplink is not shared out.
type Uplink struct {
	Link    string // its name; empty: that of the default route
	In, Out uint64 // bytes a second that it carries; 0: that direction is not shared out
}

// uplink is what is shared out of it. What sandboxes send is sorted where it leaves the machine. What they receive has come by then: it waits at a link
// of the pool's own (an ifb), which all their links lead to and which hands it back to them.
type uplink struct {
	link    netlink.Link
	in, out *shape.Shared // nil: not shared out
	gather  netlink.Link  // the ifb; nil: there is none
}

// gatherName is the ifb's. It is no slot's.
func (c *Config) gatherName() string { return "sbq" + c.Owner }

// handle names the node's disciplines among those of the machine.
func (c *Config) handle() uint16 {
	n, _ := strconv.ParseUint(c.Owner[:2], 16, 8) // checked
	return 0x5b00 | uint16(n)
}

// openUplink begins to share out the machine's link, or ends what an earlier daemon has begun and is not asked for any more.
func (p *Pool) openUplink() error {
	link, err := p.findUplink()
	if err != nil {
		return err
	}
	u := uplink{link: link}
	if p.cfg.Uplink.Out > 0 {
		if u.out, err = shape.Share(p.host, link.Attrs().Index, p.cfg.handle(), p.cfg.Uplink.Out, true); err != nil {
			return fmt.Errorf("uplink %s: out: %w", link.Attrs().Name, err)
		}
	} else if err := p.freeUplinks(); err != nil {
		return err
	}
	if p.cfg.Uplink.In > 0 {
		if u.gather, err = p.makeGather(); err != nil {
			return fmt.Errorf("uplink: in: %w", err)
		}
		if u.in, err = shape.Share(p.host, u.gather.Attrs().Index, p.cfg.handle(), p.cfg.Uplink.In, false); err != nil {
			return fmt.Errorf("uplink: in: %w", err)
		}
	} else if err := p.deleteLink(p.cfg.gatherName()); err != nil {
		return err
	}
	p.uplink = u
	return nil
}

// findUplink returns the link that is shared out; nil where none is.
func (p *Pool) findUplink() (netlink.Link, error) {
	if p.cfg.Uplink.In == 0 && p.cfg.Uplink.Out == 0 {
		return nil, nil //nolint:nilnil // as documented
	}
	if name := p.cfg.Uplink.Link; name != "" {
		link, err := p.host.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("uplink %.20q: %w", name, err)
		}
		return link, nil
	}
	routes, err := dump(func() ([]netlink.Route, error) { return p.host.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("uplink: %w", err)
	}
	for _, r := range routes {
		if (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.LinkIndex > 0 {
			return p.host.LinkByIndex(r.LinkIndex)
		}
	}
	return nil, errors.New("uplink: the machine has no default route: name the link")
}

func (p *Pool) makeGather() (netlink.Link, error) {
	name := p.cfg.gatherName()
	err := p.host.LinkAdd(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: 1000}})
	if err != nil && !errors.Is(err, unix.EEXIST) { // of an earlier daemon: sandboxes' links lead to it
		return nil, fmt.Errorf("ifb: %w", err)
	}
	link, err := p.host.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return link, p.host.LinkSetUp(link)
}

// freeUplinks ends the sharing of every link of the machine that an earlier daemon of the node has shared out.
func (p *Pool) freeUplinks() error {
	links, err := dump(p.host.LinkList)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		own, _, err := shape.Owned(p.host, l.Attrs().Index, p.cfg.handle())
		if err != nil || !own || l.Attrs().Name == p.cfg.gatherName() {
			continue // one that is gone meanwhile
		}
		errs = append(errs, shape.Free(p.host, l.Attrs().Index))
	}
	return errors.Join(errs...)
}

// Classify says how a slot fares against others where the machine's link is full. It does nothing where that is not shared out.
func (p *Pool) Classify(s *Slot, c shape.Class) error {
	u := p.uplink
	var err error
	for _, d := range []*shape.Shared{u.in, u.out} {
		if d != nil {
			err = errors.Join(err, d.Join(s.Number, c))
		}
	}
	if err == nil && u.in != nil {
		err = p.gatherFrom(s)
	}
	if err == nil && (u.in != nil || u.out != nil) {
		err = p.fw.SetPriority(s.Firewall(), shape.ID(p.cfg.handle(), s.Number))
	}
	if err != nil {
		return fmt.Errorf("network slot %d: class %s: %w", s.Number, c, err)
	}
	return nil
}

// Priority is what packets of the host are to carry (SO_PRIORITY) that it sends in a slot's place; 0: as any of the host's.
func (p *Pool) Priority(s *Slot) int {
	if p.uplink.out == nil {
		return 0
	}
	return int(shape.ID(p.cfg.handle(), s.Number))
}

// gatherFrom leads what a slot receives to the ifb.
func (p *Pool) gatherFrom(s *Slot) error {
	attrs := netlink.QdiscAttrs{LinkIndex: s.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	if err := p.host.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil {
		if errors.Is(err, unix.EEXIST) { // of an earlier daemon, with its filter, or of an earlier call
			return nil
		}
		return fmt.Errorf("clsact: %w", err)
	}
	err := p.host.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: s.Index, Parent: netlink.HANDLE_MIN_EGRESS, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  p.uplink.gather.Attrs().Index,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("redirect: %w", err), p.scatter(s.Index))
	}
	return nil
}

// scatter ends gatherFrom.
func (p *Pool) scatter(index int) error {
	attrs := netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	err := p.host.QdiscDel(&netlink.Clsact{QdiscAttrs: attrs})
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // there is none
		return nil
	}
	return fmt.Errorf("clsact: %w", err)
}

// declassify ends what Classify has done of a slot that is given back. Its link ends by itself.
func (p *Pool) declassify(s *Slot) error {
	var errs []error
	for _, d := range []*shape.Shared{p.uplink.in, p.uplink.out} {
		if d != nil {
			errs = append(errs, d.Leave(s.Number))
		}
	}
	return errors.Join(errs...)
}
