package driver

import (
	"fmt"
	"net/netip"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// published returns the ports of the group that the task's config names, as the node listens for them: at the address and the port that
// Nomad gave to the label, for TCP and for UDP, and into the sandbox at the label's `to`, or at the same port where it has none.
func published(cfg *drivers.TaskConfig) ([]nodeapi.PublishedPort, error) {
	var tc TaskConfig
	if err := cfg.DecodeDriverConfig(&tc); err != nil {
		return nil, fmt.Errorf("task config: %w", err)
	}
	var list []nodeapi.PublishedPort
	for i, label := range tc.Ports {
		if cfg.Resources == nil || cfg.Resources.Ports == nil {
			return nil, fmt.Errorf("ports[%d]: %.60q: the group's network has no ports", i, label)
		}
		p, ok := cfg.Resources.Ports.Get(label)
		if !ok {
			return nil, fmt.Errorf("ports[%d]: the group's network has no port %.60q", i, label)
		}
		inside := p.To
		if inside <= 0 { // -1 is Nomad's word for the same
			inside = p.Value
		}
		var at netip.Addr
		if p.HostIP != "" {
			var err error
			if at, err = netip.ParseAddr(p.HostIP); err != nil {
				return nil, fmt.Errorf("ports[%d]: port %s: %w", i, label, err)
			}
		}
		for _, proto := range []string{"tcp", "udp"} {
			list = append(list, nodeapi.PublishedPort{Proto: proto, Port: inside, Address: at, NodePort: p.Value})
		}
	}
	return list, nil
}
