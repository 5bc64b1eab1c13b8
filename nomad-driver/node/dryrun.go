package node

import (
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// DryRunNetwork decides by other layers about the flows that the kernel has recorded of a sandbox: its connections, and what was denied to it.
func (n *Node) DryRunNetwork(id api.SandboxID, want nodeapi.Network) (nodeapi.NetworkDryRun, error) {
	next, err := n.settings(&want)
	if err != nil {
		return nodeapi.NetworkDryRun{}, err
	}
	_, s, pol, _, err := n.slotOf(id)
	if err != nil {
		return nodeapi.NetworkDryRun{}, err
	}
	if s == nil {
		return nodeapi.NetworkDryRun{}, n.networkUnsupported()
	}
	fw := n.network.Firewall()
	conns, err := fw.Connections(s.Firewall())
	if err != nil {
		return nodeapi.NetworkDryRun{}, err
	}
	denied, err := fw.Denied(s.Firewall())
	if err != nil {
		return nodeapi.NetworkDryRun{}, err
	}
	flows := make([]policy.Flow, 0, len(conns)+len(denied))
	for _, c := range conns {
		flows = append(flows, c.Flow)
	}
	for _, d := range denied {
		flows = append(flows, d.Flow)
	}
	out := nodeapi.NetworkDryRun{Flows: []nodeapi.NetworkDryFlow{}, Notes: next.Policy.Notes()}
	seen := map[string]bool{}
	for _, f := range flows {
		if _, peer := n.network.Peer(s, f.Addr); seen[f.String()] || peer || f.Addr == n.network.Self() {
			continue // no policy decides about members of a private network, nor about the name server
		}
		seen[f.String()] = true
		f.Names = fw.Names(s.Firewall(), f.Addr)
		out.Flows = append(out.Flows, nodeapi.NetworkDryFlow{
			Address: f.Addr, Names: f.Names, Proto: f.Proto.String(), Port: f.Port, Now: verdictOf(pol.Decide(f)), Then: verdictOf(next.Policy.Decide(f)),
		})
	}
	changes := func(f nodeapi.NetworkDryFlow) int {
		if f.Now.Allow != f.Then.Allow {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out.Flows, func(a, b nodeapi.NetworkDryFlow) int { return changes(a) - changes(b) })
	return out, nil
}

func verdictOf(d policy.Decision) nodeapi.NetworkVerdict {
	return nodeapi.NetworkVerdict{Allow: d.Allow, Layer: d.Layer, Rule: d.Rule}
}
