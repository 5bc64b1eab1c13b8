package node

import (
	"context"
	"net/netip"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/proxy"
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

// attach lets a sandbox look names up and connect through the proxy, or changes what decides about both. b.mu is held, or nobody else
// has b.
func (n *Node) attach(b *box, st proxy.Settings) {
	if b.asker != nil {
		b.asker.SetPolicy(st.Policy)
		b.carrier.Set(st)
		return
	}
	slot, fw, id := b.slot, b.slot.Firewall(), string(b.id)
	asker := n.resolver.Attach(b.slot.Addr, resolver.Sandbox{
		ID: id, Policy: st.Policy,
		Pin: func(name string, addrs []netip.Addr, ttl time.Duration) ([]netip.Addr, error) {
			return n.network.Firewall().Pin(fw, name, addrs, ttl)
		},
		Private: func(name string) ([]netip.Addr, bool) { return n.network.Lookup(slot, name) },
	})
	b.asker = asker
	b.carrier = n.proxy.Attach(b.slot.Addr, proxy.Sandbox{
		ID: id, Settings: st,
		Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return n.resolver.Lookup(ctx, asker, name)
		},
		Names:    func(a netip.Addr) []string { return n.network.Firewall().Names(fw, a) },
		Priority: n.network.Priority(slot),
	})
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
