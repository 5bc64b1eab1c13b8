// Package firewall holds what sandboxes reach in the kernel: one nftables table of a node, changed in atomic batches.
//
// It owns that table, which carries the node's name, and the connections that conntrack keeps of the sandboxes' addresses. It
// makes no interface, reads no policy's text, and knows a sandbox only by its slot: the number, the interface and the address
// that package network gave it. What no map knows is dropped: a table without its daemon goes on with what it was told last.
// See DESIGN.md of package network for the chains.
package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Defaults of Limits.
const (
	DefaultConnections    = 8192
	DefaultNewConnections = 1000
	DefaultPackets        = 500_000
)

// Limits are what each sandbox may have at most.
type Limits struct {
	Connections    uint32 // at the same time
	NewConnections uint64 // a second
	Packets        uint64 // a second, sent by it
}

// Config describes a Firewall.
type Config struct {
	Host       *os.File         // network namespace that sandboxes are routed through; nil: the process's own
	Table      string           // names the node
	LinkPrefix string           // that the names of all slots' interfaces start with, and no other's
	Range      netip.Prefix     // the addresses of slots
	Hardware   net.HardwareAddr // of both ends of every link; a frame from another is dropped
	Inner      netip.Addr       // what every sandbox has as its own address
	Gateway    netip.Addr       // what every sandbox has as its gateway and name server
	Self       netip.Addr       // the node's own address for sandboxes, which Gateway stands for
	Proxy      uint16           // TCP port of Self that connections are redirected to; 0: none are
	Base       policy.Base      // the denies of the platform
	Limits     Limits
	Sorted     bool // packets of slots carry a priority (SetPriority)
}

// Slot is a sandbox as the firewall knows it.
type Slot struct {
	Number int
	Index  int        // of the interface, on the host
	Addr   netip.Addr // in Config.Range
}

// Firewall is the table of one node. Its methods may be called from any goroutine.
type Firewall struct {
	cfg   Config
	table *nftables.Table
	sets  struct {
		addrs, policies              *nftables.Set // interface to address, to the chain of its policy
		open, private                *nftables.Set
		services                     *nftables.Set // ports of Self that sandboxes reach
		packets, fresh, conns, noise *nftables.Set // by interface
		denied                       *nftables.Set
		peers                        *nftables.Set // interface and address of whom it reaches among the slots
		web, all                     *nftables.Set // interfaces of which these connections go to the proxy
		priorities                   *nftables.Set // interface to what packets carry
		meterIn, meterOut            *nftables.Set // interface to the chain that counts and loses
	}

	mu    sync.Mutex
	slots map[int]*slotRules // by number; only those with rules of their own
	peers map[int][]Slot     // by number, both ways

	metered map[int]Slot   // by number
	sorted  map[int]uint32 // priorities by number
}

// Open makes the table, or takes over that of an earlier daemon: its sandboxes keep their rules.
func Open(cfg Config) (*Firewall, error) {
	if cfg.Base.Deny == nil {
		cfg.Base.Deny = policy.DefaultDeny()
	}
	if cfg.Limits.Connections == 0 {
		cfg.Limits.Connections = DefaultConnections
	}
	if cfg.Limits.NewConnections == 0 {
		cfg.Limits.NewConnections = DefaultNewConnections
	}
	if cfg.Limits.Packets == 0 {
		cfg.Limits.Packets = DefaultPackets
	}
	for _, a := range []netip.Addr{cfg.Inner, cfg.Gateway, cfg.Self} {
		if !a.Is4() {
			return nil, fmt.Errorf("firewall %s: address %s is not of IPv4", cfg.Table, a)
		}
	}
	f := &Firewall{cfg: cfg, table: &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyINet}, slots: map[int]*slotRules{}, peers: map[int][]Slot{}, metered: map[int]Slot{}, sorted: map[int]uint32{}}
	f.declare()
	if err := f.batch(f.build); err != nil {
		return nil, fmt.Errorf("firewall %s: %w", cfg.Table, err)
	}
	return f, nil
}

// Remove removes the table and with it every rule. Call it only where no slot is left.
func (f *Firewall) Remove() error {
	return f.batch(func(c *nftables.Conn) error {
		c.DelTable(f.table)
		return nil
	})
}

// Attach lets an interface take part, with the rules of a sandbox whose policy has no layers.
func (f *Firewall) Attach(s Slot) error {
	err := f.batch(func(c *nftables.Conn) error {
		return errors.Join(
			c.SetAddElements(f.sets.addrs, []nftables.SetElement{{Key: ifKey(s.Index), Val: s.Addr.AsSlice()}}),
			c.SetAddElements(f.sets.policies, []nftables.SetElement{{Key: ifKey(s.Index), VerdictData: goVerdict(chainOpen)}}),
		)
	})
	if err != nil {
		return fmt.Errorf("firewall: slot %d: %w", s.Number, err)
	}
	return nil
}

// Detach drops everything from and to an interface, which may be gone already, and forgets its rules.
func (f *Firewall) Detach(s Slot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.batch(func(c *nftables.Conn) error {
		return errors.Join(
			c.SetDeleteElements(f.sets.addrs, []nftables.SetElement{{Key: ifKey(s.Index)}}),
			c.SetDeleteElements(f.sets.policies, []nftables.SetElement{{Key: ifKey(s.Index)}}),
			f.redirect(c, s, policy.ProxyNothing),
		)
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	err = errors.Join(err, f.dropPeers(s), f.forgetPriority(s))
	if _, ok := f.metered[s.Number]; ok {
		err = errors.Join(err, f.setMeter(s, Meter{}, 0))
	}
	if r := f.slots[s.Number]; r != nil && err == nil {
		err = f.batch(func(c *nftables.Conn) error { f.dropRules(c, r); return nil })
		delete(f.slots, s.Number)
	}
	if err != nil {
		return fmt.Errorf("firewall: slot %d: %w", s.Number, err)
	}
	return nil
}

// batch sends what do queues as one transaction: all of it takes effect at once, or none.
func (f *Firewall) batch(do func(*nftables.Conn) error) error {
	c, err := f.conn()
	if err != nil {
		return err
	}
	if err := do(c); err != nil {
		return err
	}
	return c.Flush()
}

// conn returns a connection for one batch or one listing. It is not kept: after an error an old one may hold answers to
// what was asked before.
func (f *Firewall) conn() (*nftables.Conn, error) {
	// The kernel answers every message of a batch before the first answer is read.
	opts := []nftables.ConnOption{nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(answerBytes) })}
	if f.cfg.Host != nil {
		opts = append(opts, nftables.WithNetNSFd(int(f.cfg.Host.Fd())))
	}
	return nftables.New(opts...)
}

const answerBytes = 8 << 20
