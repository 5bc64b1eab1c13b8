package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// ErrExhausted tells that as many slots are in use as there may be.
var ErrExhausted = errors.New("all network slots of the node are in use")

// Pool makes slots ahead, hands them out and takes them back. Its methods may be called from any goroutine.
type Pool struct {
	cfg    Config
	log    hclog.Logger
	host   *netlink.Handle
	fw     *firewall.Firewall
	prefix netip.Prefix
	self   netip.Addr
	own    []netip.Addr // addresses of the machine at the start

	ready chan *Slot
	want  chan struct{} // asks the maker to look
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu      sync.Mutex
	next    int
	free    []int           // numbers that were used and may be again
	held    map[int]*Slot   // in use
	resting map[int]resting // given back, not yet free
	live    int             // numbers in use, ready, or worked on
	private private
	uplink  uplink                 // set by Open
	meters  map[int]firewall.Meter // by number, of slots that have one
	fault   error                  // why the maker failed last
}

// resting is a number between two uses.
type resting struct {
	slot  *Slot
	since time.Time
}

// Open takes the machine's network for the sandboxes of one node: it chooses the range, lets the kernel forward, makes the
// firewall's table, and tries with a packet whether a sandbox would reach anybody. Slots of an earlier daemon are to be recovered, and the
// rest swept, before Start begins to make slots.
func Open(cfg Config) (*Pool, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	p := &Pool{cfg: cfg, log: cfg.Logger, ready: make(chan *Slot, cfg.Ahead), want: make(chan struct{}, 1), held: map[int]*Slot{}, meters: map[int]firewall.Meter{}, resting: map[int]resting{}}
	p.private.members, p.private.slots = map[int][]Membership{}, map[int]firewall.Slot{}
	p.ctx, p.stop = context.WithCancel(context.Background())
	if err := p.open(); err != nil {
		if p.host != nil {
			p.host.Close()
		}
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := p.take(); err != nil {
		p.host.Close()
		return nil, fmt.Errorf("network: %w", errors.Join(err, p.withdraw()))
	}
	return p, nil
}

// withdraw takes away what a failed Open has made, unless sandboxes of an earlier daemon go on with it.
func (p *Pool) withdraw() error {
	h, err := handleAt(p.cfg.Host)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := dump(h.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		if hasPrefix(l.Attrs().Name, p.cfg.linkPrefix()) {
			return nil
		}
	}
	return p.Remove()
}

func (p *Pool) open() error {
	var err error
	if p.host, err = handleAt(p.cfg.Host); err != nil {
		return err
	}
	if p.prefix, err = p.chooseRange(); err != nil {
		return err
	}
	p.self = selfIn(p.prefix)
	if room := 1<<(32-p.prefix.Bits()) - 3; p.cfg.Max > room {
		p.cfg.Max = room
	}
	p.own, err = p.hostAddresses()
	return err
}

// take makes on the machine what all slots share, and tries it.
func (p *Pool) take() error {
	var err error
	p.fw, err = firewall.Open(firewall.Config{
		Host: p.cfg.Host, Table: "soulbox-" + p.cfg.Owner, LinkPrefix: p.cfg.linkPrefix(), Range: p.prefix,
		Hardware: linkAddress, Inner: Inner, Gateway: Gateway, Self: p.self, Proxy: ProxyPort, Base: p.cfg.base(nil), Limits: p.cfg.Limits,
		Sorted: p.cfg.Uplink.In > 0 || p.cfg.Uplink.Out > 0,
	})
	if err != nil {
		return err
	}
	lo, err := p.host.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := p.host.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(p.self)}); err != nil {
		return fmt.Errorf("own address %s: %w", p.self, err)
	}
	if err := p.openUplink(); err != nil {
		return err
	}
	// Only now: before, what the kernel forwards would meet no rules of ours.
	if err := p.inHost(func() error { return sysctl("ipv4/ip_forward", "1") }); err != nil {
		return err
	}
	return p.try(p.ctx)
}

// hostAddresses returns the addresses of the machine, to explain with; that they are out of reach needs no list.
func (p *Pool) hostAddresses() ([]netip.Addr, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return p.host.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("own addresses: %w", err)
	}
	var list []netip.Addr
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			list = append(list, addr.Unmap())
		}
	}
	return list, nil
}

// Start starts to make slots. Close ends that.
func (p *Pool) Start() { p.wg.Go(func() { p.run(p.ctx) }) }

// Close ends the making of slots and removes those that wait. Slots in use stay as they are, with their rules.
func (p *Pool) Close() error {
	p.stop()
	p.wg.Wait()
	var errs []error
	for {
		select {
		case s := <-p.ready:
			errs = append(errs, p.fw.Detach(s.Firewall()), s.netns.Close())
			continue
		default:
		}
		break
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.held {
		if s.netns != nil {
			errs = append(errs, s.netns.Close())
		}
	}
	p.host.Close()
	return errors.Join(errs...)
}

// Remove takes away what Open has made on the machine, once no slot is in use. The pool must be closed. That the kernel forwards
// stays: others may rely on it by now.
func (p *Pool) Remove() error {
	h, err := handleAt(p.cfg.Host)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := dump(h.LinkList)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if hasPrefix(l.Attrs().Name, p.cfg.linkPrefix()) {
			errs = append(errs, deleteLink(h, l.Attrs().Name))
		}
	}
	errs = append(errs, deleteLink(h, p.cfg.gatherName()))
	if u := p.uplink; u.out != nil {
		errs = append(errs, shape.Free(h, u.link.Attrs().Index))
	}
	if p.fw != nil {
		errs = append(errs, p.fw.Remove())
	}
	lo, err := h.LinkByName("lo")
	if err == nil {
		if err = h.AddrDel(lo, &netlink.Addr{IPNet: ipNet(p.self)}); errors.Is(err, unix.EADDRNOTAVAIL) {
			err = nil
		}
	}
	return errors.Join(append(errs, err)...)
}

// Range returns the addresses that the node gives to slots.
func (p *Pool) Range() netip.Prefix { return p.prefix }

// Self returns the node's own address for sandboxes: what listens there is what they reach as Gateway, as far as the firewall
// allows the port.
func (p *Pool) Self() netip.Addr { return p.self }

// Firewall returns the firewall that the slots are in.
func (p *Pool) Firewall() *firewall.Firewall { return p.fw }

// Base returns the platform's part of every policy.
func (p *Pool) Base() policy.Base { return p.cfg.base(p.own) }

// Take hands out a slot. It waits for one to be made where none is ready, until ctx ends; ErrExhausted where as many are in use as
// there may be.
func (p *Pool) Take(ctx context.Context) (*Slot, error) {
	var s *Slot
	select {
	case s = <-p.ready:
	default:
		if err := p.exhausted(); err != nil {
			return nil, err
		}
		p.ask()
		select {
		case s = <-p.ready:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("take a network slot: %w", context.Cause(ctx)), p.lastFault())
		case <-p.ctx.Done():
			return nil, errors.New("take a network slot: the pool is closed")
		}
	}
	p.mu.Lock()
	p.held[s.Number] = s
	p.mu.Unlock()
	p.ask()
	return s, nil
}

func (p *Pool) exhausted() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.held) >= p.cfg.Max {
		return fmt.Errorf("%w: %d", ErrExhausted, len(p.held))
	}
	return nil
}

func (p *Pool) lastFault() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fault
}

func (p *Pool) ask() {
	select {
	case p.want <- struct{}{}:
	default: // it was asked already
	}
}

// Give takes a slot back once no process is in it. Its namespace ends with that: nobody else ever gets it.
func (p *Pool) Give(s *Slot) error {
	p.mu.Lock()
	if p.held[s.Number] != s {
		p.mu.Unlock()
		return fmt.Errorf("network slot %d is not in use", s.Number)
	}
	delete(p.held, s.Number)
	p.private.part(s.Number)
	p.live--
	p.resting[s.Number] = resting{s, time.Now()}
	delete(p.meters, s.Number)
	p.mu.Unlock()
	err := errors.Join(p.fw.Detach(s.Firewall()), p.declassify(s))
	if s.netns != nil {
		err = errors.Join(err, s.netns.Close())
	}
	p.ask()
	return err
}

// Adopt makes a slot of a network namespace that exists, and is empty but for its loopback: one that a restore has made. The
// caller keeps netns. The slot is given back like any other.
func (p *Pool) Adopt(ctx context.Context, netns *os.File) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := p.exhausted(); err != nil {
		return nil, err
	}
	number, ok := p.number()
	if !ok {
		return nil, fmt.Errorf("%w: %d", ErrExhausted, p.cfg.Max)
	}
	s, err := p.make(number, netns)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.live--
		p.free = append(p.free, number)
		return nil, err
	}
	s.netns = nil // the caller's
	p.held[number] = s
	return s, nil
}
