// Package network is the networks of a node's sandboxes: slots, made ahead, of which each is a network namespace with one
// interface that leads to the host, an address on the host, and a place in the firewall.
//
// It owns every interface whose name starts with the node's prefix, the addresses of the node's range, and the table of package
// firewall. It knows no sandbox beyond the name of who holds a slot, and reads no request: what a policy is, is package policy's.
// See DESIGN.md.
package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// What every sandbox sees, on every node: its own address and the one that is its gateway and its name server. So a restored
// sandbox needs no new number.
var (
	Inner   = netip.MustParseAddr("10.255.255.2")
	Gateway = netip.MustParseAddr("10.255.255.1")
)

// ProxyPort is the TCP port of the node's own address where the proxy listens. It is fixed, so that the rules of a daemon that is gone
// lead nowhere, and not past the next one.
const ProxyPort = 15001

// InnerLink is the name of a sandbox's interface.
const InnerLink = "eth0"

// linkAddress is the hardware address of both ends of every link. Neither asks for the other's: ARP is off, so that there is
// none to lie with, and what is sent to the own address arrives at the other end.
var linkAddress = net.HardwareAddr{0x02, 0x53, 0x42, 0x00, 0x00, 0x01}

// Defaults of Config.
const (
	DefaultAhead = 16
	DefaultMax   = 10_000
	DefaultQuiet = 5 * time.Second
	DefaultMTU   = 1500
)

// Config describes a Pool.
type Config struct {
	Owner string   // names the node among those of the machine; OwnerOf gives one
	Dir   string   // where the range of addresses is kept
	Host  *os.File // network namespace that sandboxes are routed through; nil: the process's own

	Range netip.Prefix  // of IPv4, /8 to /26: the addresses of slots; the zero Prefix: a free one is chosen and kept
	Ahead int           // slots that wait
	Max   int           // slots in use and waiting
	Quiet time.Duration // before a number is used again
	MTU   int

	Deny   []netip.Prefix // policy.Base.Deny
	Open   []netip.Prefix // policy.Base.Open
	Limits firewall.Limits
	Uplink Uplink
	Logger hclog.Logger // discards where nil
}

// OwnerOf returns the owner's name for a node with this state directory.
func OwnerOf(stateDir string) string {
	sum := sha256.Sum256([]byte(stateDir))
	return hex.EncodeToString(sum[:3])
}

func (c *Config) setDefaults() error {
	if len(c.Owner) != 6 || strings.Trim(c.Owner, "0123456789abcdef") != "" {
		return fmt.Errorf("owner %.20q is not six hexadecimal digits", c.Owner)
	}
	for _, d := range []struct {
		name     string
		v        *int
		def, max int
	}{{"ahead", &c.Ahead, DefaultAhead, 4096}, {"max", &c.Max, DefaultMax, 1 << 16}, {"mtu", &c.MTU, DefaultMTU, 65535}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 1 || *d.v > d.max {
			return fmt.Errorf("%s is %d, must be between 1 and %d", d.name, *d.v, d.max)
		}
	}
	if c.Max > shape.MaxMembers {
		c.Max = shape.MaxMembers
	}
	if c.Quiet == 0 {
		c.Quiet = DefaultQuiet
	}
	if c.Quiet < 0 {
		return errors.New("quiet is negative")
	}
	if c.Range.IsValid() && (!c.Range.Addr().Is4() || c.Range.Bits() < 8 || c.Range.Bits() > 26 || c.Range.Masked() != c.Range) {
		return fmt.Errorf("range %s is no range of IPv4 between /8 and /26, or has bits behind its length", c.Range)
	}
	for _, p := range append(append([]netip.Prefix{}, c.Open...), c.Deny...) {
		if !p.IsValid() || !p.Addr().Is4() || p.Masked() != p {
			return fmt.Errorf("range %s is none of IPv4, or has bits behind its length", p)
		}
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return nil
}

// linkPrefix starts the names of the owner's interfaces on the host.
func (c *Config) linkPrefix() string { return "sb" + c.Owner + "-" }

func (c *Config) linkName(number int) string { return c.linkPrefix() + strconv.Itoa(number) }

// base is the platform's part of every policy. That the host's own addresses are out of reach is said by the hook they
// meet; they are not listed, since they change.
func (c *Config) base(host []netip.Addr) policy.Base {
	b := policy.Base{Deny: c.Deny, Open: c.Open, Host: host, Resolver: netip.AddrPortFrom(Gateway, 53)}
	if b.Deny == nil {
		b.Deny = policy.DefaultDeny()
	}
	return b
}
