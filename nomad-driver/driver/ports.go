package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// groupNamespace returns the path of the network namespace that Nomad has made for the task's group, which has modes bridge or cni; empty
// where there is none. The sandbox is not put into it: what it sends would go past its firewall.
func groupNamespace(cfg *drivers.TaskConfig) (string, error) {
	n := cfg.NetworkIsolation
	if n == nil {
		return "", nil
	}
	switch n.Mode {
	case drivers.NetIsolationModeGroup:
		if n.Path == "" {
			return "", errors.New("the group's network has no namespace: a driver that keeps it to itself cannot be in one group with this one")
		}
		return n.Path, nil
	case "", drivers.NetIsolationModeHost, drivers.NetIsolationModeTask, drivers.NetIsolationModeNone:
		return "", nil
	}
	return "", fmt.Errorf("network isolation mode %.40q is not supported", n.Mode)
}

// published returns the ports of the group that the task's config names, as the node listens for them, for TCP and for UDP: at the address and the
// port that Nomad gave to the label, and into the sandbox at the label's `to`, or at the same port where it has none. In the group's own namespace
// it is `to` that is listened at, at every address: Nomad leads its port there, and other tasks of the group come from the loopback.
func published(cfg *drivers.TaskConfig, inGroup bool) ([]nodeapi.PublishedPort, error) {
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
		want := nodeapi.PublishedPort{Port: inside, NodePort: p.Value}
		switch {
		case inGroup:
			want.NodePort = inside
		case p.HostIP != "":
			var err error
			if want.Address, err = netip.ParseAddr(p.HostIP); err != nil {
				return nil, fmt.Errorf("ports[%d]: port %s: %w", i, label, err)
			}
		}
		for _, want.Proto = range []string{"tcp", "udp"} {
			if !slices.Contains(list, want) { // two labels may lead to one port of the group's namespace
				list = append(list, want)
			}
		}
	}
	return list, nil
}

// renewPorts has the node listen for a task's ports where it does not any more, and says in the task's events what it cannot have.
func (d *Driver) renewPorts(ctx context.Context, node *nodeapi.Client, id api.SandboxID, cfg *drivers.TaskConfig) {
	list, err := node.RenewPublished(ctx, id)
	if err != nil { // an older daemon does not know it
		d.logger.Debug("ports of a task", "task_id", cfg.ID, "error", err)
		return
	}
	var lost []string
	for _, p := range list {
		if p.Error != "" {
			lost = append(lost, fmt.Sprintf("%s %d: %s", p.Proto, p.Port, p.Error))
		}
	}
	if len(lost) > 0 {
		d.emit(cfg, "Ports do not lead into the sandbox any more: "+strings.Join(lost, "; "), map[string]string{"sandbox_id": id.String()})
	}
}
