package node

import (
	"net/netip"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/resolver"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nameServerFile tells programs in a sandbox with a network who knows names. It is the same in all, so that copies have a good one.
var nameServerFile = guest.BootFile{
	Path: "/etc/resolv.conf", Content: "nameserver " + network.Gateway.String() + "\noptions edns0 timeout:5 attempts:2\n", Replace: true,
}

// openNames starts the name server of the node's sandboxes.
func (n *Node) openNames() error {
	packets, streams, err := n.network.ListenNames()
	if err != nil {
		return err
	}
	n.resolver = resolver.New(resolver.Config{
		Upstreams: n.cfg.Network.Resolvers, Dial: n.network.Dial, Limits: n.cfg.Network.Names, Logger: n.log.Named("names"),
	})
	n.resolver.Serve(packets, streams)
	n.closers = append(n.closers, n.resolver.Close)
	return nil
}

// attachNames lets a sandbox look names up.
func (n *Node) attachNames(id api.SandboxID, s *network.Slot, pol *policy.Policy) *resolver.Client {
	fw := s.Firewall()
	return n.resolver.Attach(s.Addr, resolver.Sandbox{ID: string(id), Policy: pol, Pin: func(name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
		return n.network.Firewall().Pin(fw, name, addrs, ttl)
	}})
}

// namesOf says what a sandbox asked for.
func namesOf(c *resolver.Client) nodeapi.NetworkNames {
	counts := c.Counts()
	out := nodeapi.NetworkNames{
		Queries: counts.Queries, Denied: counts.Denied, Refused: counts.Refused, Limited: counts.Limited, Failed: counts.Failed,
	}
	for _, name := range c.Names() {
		out.Last = append(out.Last, nodeapi.NetworkName{
			Name: name.Name, Last: name.Last, Count: name.Count, Allow: name.Decision.Allow, Layer: name.Decision.Layer, Rule: name.Decision.Rule,
		})
	}
	return out
}
