package nomad

import (
	"context"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
)

var (
	_ placement.Drainer = (*Placer)(nil)
	_ placement.Fencer  = (*Placer)(nil)
)

// Draining implements placement.Drainer: the clients that `nomad node drain` was told of. A client's id is its node's.
func (p *Placer) Draining(ctx context.Context) ([]api.NodeID, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	nodes, _, err := p.client.Nodes().List(p.query(ctx))
	if err != nil {
		return nil, fmt.Errorf("nodes that drain: %w", mapError(err))
	}
	var out []api.NodeID
	for _, n := range nodes {
		if n.Drain {
			out = append(out, api.NodeID(n.ID))
		}
	}
	return out, nil
}

// Fence implements placement.Fencer: Nomad's own eligibility of a client. One that Nomad drains stays ineligible until the drain ends.
func (p *Placer) Fence(ctx context.Context, node api.NodeID, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := p.client.Nodes().ToggleEligibility(string(node), !on, p.write(ctx)); err != nil && !isNodeGone(err) {
		return fmt.Errorf("eligibility of node %s: %w", node, mapError(err))
	}
	return nil
}
