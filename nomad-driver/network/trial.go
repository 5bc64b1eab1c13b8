package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
)

// trialRanges are those of documentation, where nobody should be. An address of one that the machine does not use is on it for the milliseconds
// that a trial takes.
var trialRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24")}

const (
	trialPort  = 7
	trialTries = 4
	trialWait  = 250 * time.Millisecond
)

// try makes a slot and sends a packet out of it, through the machine to a namespace behind, and back. What the machine cannot do, or
// what a firewall of its own drops, is told with its reason here, and not by every sandbox's programs.
func (p *Pool) try(ctx context.Context) (err error) {
	last := 1<<(32-p.prefix.Bits()) - 3 // no sandbox's
	s, err := p.make(last, nil)
	if err != nil {
		return err
	}
	defer func() {
		_, cut := p.fw.CutAll([]firewall.Slot{s.Firewall()})
		err = errors.Join(err, cut, p.fw.Detach(s.Firewall()), s.netns.Close(), p.deleteLink(s.Link))
	}()
	to, err := p.nobody(1 + s.Index%250)
	if err != nil || !to.IsValid() {
		return err
	}
	far, err := p.beyond(to)
	if errors.Is(err, os.ErrExist) {
		return nil // the machine knows the address: no trial without getting in somebody's way
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.deleteLink(p.trialLink()), far.Close()) }()
	return p.echo(ctx, s.netns, far, to)
}

// nobody returns an address that the machine has no route to of its own, and that sandboxes may reach; the zero Addr where there is none: then
// nothing is tried.
func (p *Pool) nobody(host int) (netip.Addr, error) {
	used, err := p.usedRanges()
	if err != nil {
		return netip.Addr{}, err
	}
	used = append(used, p.cfg.base(p.own).Deny...)
	for _, r := range trialRanges {
		if !slices.ContainsFunc(used, r.Overlaps) {
			a := r.Addr().As4()
			a[3] = byte(host) //nolint:gosec // below 256
			return netip.AddrFrom4(a), nil
		}
	}
	return netip.Addr{}, nil
}

func (p *Pool) trialLink() string { return "sbt" + p.cfg.Owner }

// beyond makes a namespace that has an address, behind a link of the machine.
func (p *Pool) beyond(at netip.Addr) (_ *os.File, err error) {
	if err := p.deleteLink(p.trialLink()); err != nil { // an earlier daemon that was killed here
		return nil, err
	}
	far, err := p.namespace(nil)
	if err != nil {
		return nil, err
	}
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: p.trialLink(), HardwareAddr: linkAddress, MTU: p.cfg.MTU},
		PeerName:  InnerLink, PeerHardwareAddr: linkAddress, PeerMTU: uint32(p.cfg.MTU), //nolint:gosec // checked
		PeerNamespace: netlink.NsFd(int(far.Fd())),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.deleteLink(p.trialLink()), far.Close())
		}
	}()
	if err := p.host.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("make link %s: %w", link.Name, err)
	}
	host, err := p.host.LinkByName(link.Name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(p.host.LinkSetARPOff(host), p.host.LinkSetUp(host)); err != nil {
		return nil, fmt.Errorf("link %s: %w", link.Name, err)
	}
	if err := p.host.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: ipNet(at), Scope: netlink.SCOPE_LINK}); err != nil {
		return nil, fmt.Errorf("route to %s: %w", at, err)
	}
	h, err := handleAt(far)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	inner, err := h.LinkByName(InnerLink)
	if err != nil {
		return nil, err
	}
	return far, errors.Join(
		h.LinkSetARPOff(inner), h.AddrAdd(inner, &netlink.Addr{IPNet: ipNet(at)}), h.LinkSetUp(inner),
		h.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Scope: netlink.SCOPE_LINK}),
	)
}

// echo sends packets from one namespace to an address of the other until one comes back.
func (p *Pool) echo(ctx context.Context, from, far *os.File, to netip.Addr) error {
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, trialPort))
	var server, client *net.UDPConn
	err := inNamespace(far, func() (err error) {
		server, err = net.ListenUDP("udp4", at)
		return err
	})
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 16)
		for {
			n, peer, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(b[:n], peer) // what is lost is asked for again
		}
	}()
	defer func() { _ = server.Close(); <-done }()
	err = inNamespace(from, func() (err error) {
		client, err = net.DialUDP("udp4", nil, at)
		return err
	})
	if err != nil {
		return err
	}
	defer client.Close()
	for range trialTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err = client.SetDeadline(time.Now().Add(trialWait)); err != nil {
			return err
		}
		if _, err = client.Write([]byte("?")); err != nil {
			continue // an earlier one was refused
		}
		if _, err = client.Read(make([]byte, 16)); err == nil {
			return nil
		}
	}
	return fmt.Errorf("a packet that a sandbox sends out does not come back: let the machine's own firewall forward what comes from and goes to %s*: %w",
		p.cfg.linkPrefix(), err)
}
