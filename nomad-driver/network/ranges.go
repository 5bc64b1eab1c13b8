package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ranges that are chosen: /18 within 10.192.0.0/10, so that many nodes of one machine and its own networks have room.
const (
	rangeBits  = 18
	rangeFirst = 10<<24 | 192<<16
	rangeCount = 1 << (rangeBits - 10)
)

// stored is the file that keeps the chosen range.
type stored struct {
	Version int          `json:"version"`
	Range   netip.Prefix `json:"range"`
}

func (c *Config) rangeFile() string { return filepath.Join(c.Dir, "network.json") }

// chooseRange returns the range of the configuration, or that of an earlier daemon, or one that nothing on the machine uses.
func (p *Pool) chooseRange() (netip.Prefix, error) {
	used, err := p.usedRanges()
	if err != nil {
		return netip.Prefix{}, err
	}
	free := func(r netip.Prefix) error {
		for _, u := range used {
			if u.Overlaps(r) {
				return fmt.Errorf("range %s: the machine has a route to, or an address in, %s", r, u)
			}
		}
		return nil
	}
	if p.cfg.Range.IsValid() {
		return p.cfg.Range, free(p.cfg.Range)
	}
	b, err := os.ReadFile(p.cfg.rangeFile())
	if err == nil {
		var s stored
		if err := json.Unmarshal(b, &s); err != nil || s.Version != 1 || !s.Range.IsValid() {
			return netip.Prefix{}, fmt.Errorf("%s: version %d, this daemon reads 1 (%w)", p.cfg.rangeFile(), s.Version, err)
		}
		if err := free(s.Range); err == nil {
			return s.Range, nil
		}
		p.log.Warn("the range of addresses is used by others now: another one is chosen", "range", s.Range)
	} else if !errors.Is(err, os.ErrNotExist) {
		return netip.Prefix{}, err
	}
	start, err := strconv.ParseUint(p.cfg.Owner, 16, 32)
	if err != nil {
		return netip.Prefix{}, err
	}
	for i := range uint64(rangeCount) {
		at := (start + i) % rangeCount
		r := netip.PrefixFrom(addr4(rangeFirst+uint32(at)<<(32-rangeBits)), rangeBits) //nolint:gosec // below rangeCount
		if r.Contains(Inner) || free(r) != nil {
			continue
		}
		return r, p.keepRange(r)
	}
	return netip.Prefix{}, errors.New("no range of addresses is free in 10.192.0.0/10: name one")
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// keepRange stores the chosen range durably.
func (p *Pool) keepRange(r netip.Prefix) error {
	b, err := json.Marshal(stored{Version: 1, Range: r})
	if err != nil {
		return err
	}
	path := p.cfg.rangeFile()
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	dir, err := os.Open(p.cfg.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// usedRanges returns what the machine routes or has, without what is this node's own.
func (p *Pool) usedRanges() ([]netip.Prefix, error) {
	own := map[int]bool{}
	links, err := dump(p.host.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		own[l.Attrs().Index] = hasPrefix(l.Attrs().Name, p.cfg.linkPrefix())
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return p.host.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	mine := p.ownAddresses()
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || own[r.LinkIndex] {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits == 0 || mine[a.Unmap()] {
			continue
		}
		used = append(used, netip.PrefixFrom(a.Unmap(), bits))
	}
	return used, nil
}

// ownAddresses returns the node's own address on the loopback, as far as an earlier daemon left it there.
func (p *Pool) ownAddresses() map[netip.Addr]bool {
	mine := map[netip.Addr]bool{}
	var s stored
	if b, err := os.ReadFile(p.cfg.rangeFile()); err == nil && json.Unmarshal(b, &s) == nil && s.Range.IsValid() {
		mine[selfIn(s.Range)] = true
	}
	if p.cfg.Range.IsValid() {
		mine[selfIn(p.cfg.Range)] = true
	}
	return mine
}

// selfIn returns the node's own address in a range, address the one of a slot.
func selfIn(r netip.Prefix) netip.Addr { return r.Addr().Next() }

func (p *Pool) address(number int) netip.Addr {
	return addr4(binary.BigEndian.Uint32(p.prefix.Addr().AsSlice()) + 2 + uint32(number)) //nolint:gosec // checked against the range
}

func hasPrefix(s, prefix string) bool { return len(s) > len(prefix) && s[:len(prefix)] == prefix }

// dump repeats a listing that the kernel says it has changed under.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
