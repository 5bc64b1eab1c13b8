package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/binaryutil"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Denial is a destination that was denied to a sandbox.
type Denial struct {
	Flow   policy.Flow
	Reason Reason
	Last   time.Time // of the attempts
}

// Denied returns what was denied to a slot in the last ten minutes, latest first. At most 20 destinations a second are noted
// for each sandbox.
func (f *Firewall) Denied(s Slot) ([]Denial, error) {
	c, err := f.conn()
	if err != nil {
		return nil, err
	}
	elems, err := c.GetSetElements(f.sets.denied)
	if err != nil {
		return nil, fmt.Errorf("firewall: denied flows: %w", err)
	}
	now := time.Now()
	var list []Denial
	for _, e := range elems {
		if len(e.Key) < 20 || binaryutil.NativeEndian.Uint32(e.Key) != uint32(s.Index) { //nolint:gosec // an interface's index
			continue
		}
		addr, _ := netip.AddrFromSlice(e.Key[4:8])
		list = append(list, Denial{
			Flow:   policy.Flow{Addr: addr, Proto: policy.Proto(e.Key[8]), Port: binary.BigEndian.Uint16(e.Key[12:14])},
			Reason: Reason(binaryutil.NativeEndian.Uint32(e.Key[16:20])), Last: now.Add(e.Expires - denyTime),
		})
	}
	slices.SortFunc(list, func(a, b Denial) int { return b.Last.Compare(a.Last) })
	return list, nil
}

// Connection is one that conntrack keeps of a sandbox.
type Connection struct {
	Flow     policy.Flow
	SrcPort  uint16
	Sent     uint64 // bytes, where the kernel counts them
	Received uint64
	Proxied  bool // it goes to the proxy
}

// handle returns a netlink handle in the host's namespace.
func (f *Firewall) handle() (*netlink.Handle, error) {
	if f.cfg.Host == nil {
		return netlink.NewHandle(unix.NETLINK_NETFILTER)
	}
	return netlink.NewHandleAt(netns.NsHandle(f.cfg.Host.Fd()), unix.NETLINK_NETFILTER)
}

// Connections returns those that a sandbox has made.
func (f *Firewall) Connections(s Slot) (list []Connection, err error) {
	_, err = f.each(s, func(c Connection) bool { list = append(list, c); return false })
	return list, err
}

// Cut ends the connections of a slot that forbid says so of, and returns how many: what it names belongs to nobody from then on,
// and meets the rules as if it were new.
func (f *Firewall) Cut(s Slot, forbid func(Connection) bool) (int, error) { return f.each(s, forbid) }

// each calls do for the connections of a slot and deletes those of which it returns true.
func (f *Firewall) each(s Slot, do func(Connection) bool) (int, error) {
	h, err := f.handle()
	if err != nil {
		return 0, fmt.Errorf("firewall: connections: %w", err)
	}
	defer h.Close()
	n, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, picker{s.Addr, f.cfg.Self, do})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("firewall: connections of slot %d: %w", s.Number, err)
	}
	return int(n), nil //nolint:gosec // a count of connections
}

// picker is a filter over the table of connections.
type picker struct {
	addr, self netip.Addr
	pick       func(Connection) bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (p picker) MatchConntrackFlow(fl *netlink.ConntrackFlow) bool {
	src, ok := netip.AddrFromSlice(fl.Forward.SrcIP)
	if !ok || src.Unmap() != p.addr {
		return false
	}
	dst, _ := netip.AddrFromSlice(fl.Forward.DstIP)
	back, _ := netip.AddrFromSlice(fl.Reverse.SrcIP)
	return p.pick(Connection{
		Flow:    policy.Flow{Addr: dst.Unmap(), Proto: policy.Proto(fl.Forward.Protocol), Port: fl.Forward.DstPort},
		SrcPort: fl.Forward.SrcPort, Sent: fl.Forward.Bytes, Received: fl.Reverse.Bytes,
		Proxied: back.Unmap() == p.self && dst.Unmap() != p.self,
	})
}

// CutAll ends every connection from and to some slots.
func (f *Firewall) CutAll(slots []Slot) (int, error) {
	h, err := f.handle()
	if err != nil {
		return 0, fmt.Errorf("firewall: connections: %w", err)
	}
	defer h.Close()
	all := ends{}
	for _, s := range slots {
		all[s.Addr] = true
	}
	n, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, all)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("firewall: cut connections: %w", err)
	}
	return int(n), nil //nolint:gosec // a count of connections
}

// ends is a filter for connections with an end among some addresses.
type ends map[netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (e ends) MatchConntrackFlow(fl *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(fl.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(fl.Reverse.SrcIP)
	return e[src.Unmap()] || e[dst.Unmap()]
}
