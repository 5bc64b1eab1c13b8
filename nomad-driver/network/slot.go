package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
)

// Slot is one sandbox's network. It does not change.
type Slot struct {
	Number int
	Index  int        // of its interface on the host
	Link   string     // the name of that interface
	Addr   netip.Addr // what the host, and whoever looks at its traffic there, knows the sandbox by

	netns *os.File // nil where it was taken over from an earlier daemon
}

// Namespace returns the slot's network namespace, for a process to be started in. It is the slot's to close.
func (s *Slot) Namespace() *os.File { return s.netns }

// Firewall returns the slot as the firewall knows it.
func (s *Slot) Firewall() firewall.Slot {
	return firewall.Slot{Number: s.Number, Index: s.Index, Addr: s.Addr}
}

// Ref is what it takes to find a slot again after a restart of the daemon. It may be stored as JSON.
type Ref struct {
	Number int `json:"number"`
	Index  int `json:"index"`
}

// Ref returns what Recover needs.
func (s *Slot) Ref() Ref { return Ref{Number: s.Number, Index: s.Index} }

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// make makes a slot. netns is a namespace to wire; where it is nil one is made. On error nothing is left but netns.
func (p *Pool) make(number int, netns *os.File) (_ *Slot, err error) {
	s := &Slot{Number: number, Link: p.cfg.linkName(number), Addr: p.address(number)}
	own := netns == nil
	if s.netns, err = p.namespace(netns); err != nil {
		return nil, fmt.Errorf("slot %d: %w", number, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("slot %d: %w", number, err)
			if s.Index != 0 {
				err = errors.Join(err, p.fw.Detach(s.Firewall()), p.deleteLink(s.Link))
			}
			if own {
				err = errors.Join(err, s.netns.Close())
			}
		}
	}()
	// The inner end is made inside: to move it there would take a grace period of the kernel.
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: s.Link, HardwareAddr: linkAddress, MTU: p.cfg.MTU, TxQLen: 1000, NumTxQueues: 1, NumRxQueues: 1},
		PeerName:  InnerLink, PeerHardwareAddr: linkAddress, PeerMTU: uint32(p.cfg.MTU), //nolint:gosec // checked
		PeerNamespace: netlink.NsFd(int(s.netns.Fd())),
	}
	if err := p.host.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make link %s: %w", s.Link, err)
	}
	s.Index = veth.Attrs().Index
	if s.Index == 0 {
		link, err := p.host.LinkByName(s.Link)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("find link %s: %w", s.Link, err), p.deleteLink(s.Link))
		}
		s.Index = link.Attrs().Index
		veth.Index = s.Index
	}
	if err := inNamespace(s.netns, configure); err != nil {
		return nil, err
	}
	if err := p.fw.Attach(s.Firewall()); err != nil {
		return nil, err
	}
	if err := p.hostEnd(veth, s); err != nil {
		return nil, err
	}
	return s, nil
}

// namespace makes a network namespace, or prepares the one that is given.
func (p *Pool) namespace(ns *os.File) (*os.File, error) {
	if ns != nil {
		return ns, inNamespace(ns, prepare)
	}
	err := inNamespace(nil, func() error {
		if err := prepare(); err != nil {
			return err
		}
		var err error
		ns, err = ownNamespace()
		return err
	})
	return ns, err
}

// hostEnd configures the host's end, which is up last: the firewall knows it by then.
func (p *Pool) hostEnd(link netlink.Link, s *Slot) error {
	if err := p.inHost(func() error { return sysctl("ipv6/conf/"+s.Link+"/disable_ipv6", "1") }); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := p.host.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("link %s: %w", s.Link, err)
	}
	if err := p.host.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: %w", s.Link, err)
	}
	err := p.host.RouteAdd(&netlink.Route{LinkIndex: s.Index, Dst: ipNet(s.Addr), Src: p.self.AsSlice(), Scope: netlink.SCOPE_LINK})
	if err != nil {
		return fmt.Errorf("route to %s: %w", s.Addr, err)
	}
	return nil
}

// inHost runs do on a thread in the host's namespace.
func (p *Pool) inHost(do func() error) error {
	if p.cfg.Host == nil {
		return do()
	}
	return inNamespace(p.cfg.Host, do)
}

// deleteLink removes a link of the host. One that is gone, with its namespace, is no error.
func (p *Pool) deleteLink(name string) error { return deleteLink(p.host, name) }

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(link)
	}
	var none netlink.LinkNotFoundError
	if err == nil || errors.As(err, &none) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("remove link %s: %w", name, err)
}
