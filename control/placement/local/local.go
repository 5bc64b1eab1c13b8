// Package local places every sandbox on one node, which it calls directly.
//
// It keeps no memory of its own: the node's records are the placements.
package local

import (
	"context"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// OwnerKind is the owner of the sandboxes that the control service makes.
const OwnerKind = "control"

// Placer is a placement.Placer on one node.
type Placer struct {
	node *nodeapi.Client
}

var _ placement.Placer = (*Placer)(nil)

// New returns a placer on the node that client speaks to. The caller closes the client.
func New(client *nodeapi.Client) *Placer { return &Placer{node: client} }

// Place implements placement.Placer. It returns when the sandbox runs, or with the node's own error.
func (p *Placer) Place(ctx context.Context, req placement.Request) error {
	req.Node.Owner = nodeapi.Owner{Kind: OwnerKind}
	_, err := p.node.Create(ctx, req.Node)
	if err != nil {
		return fmt.Errorf("place sandbox %s: %w", req.Node.ID, err)
	}
	return nil
}

// Stop implements placement.Placer. The node kills everything in the sandbox and removes what it held.
func (p *Placer) Stop(ctx context.Context, id api.SandboxID) error {
	if err := p.node.Delete(ctx, id); err != nil && !api.IsNotFound(err) {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return nil
}

// List implements placement.Placer.
func (p *Placer) List(ctx context.Context) ([]placement.Placed, error) {
	all, err := p.node.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list placements: %w", err)
	}
	var out []placement.Placed
	for _, s := range all {
		if s.Owner.Kind != OwnerKind {
			continue
		}
		e := placement.Placed{ID: s.ID, State: placement.Active, Ref: string(s.ID), CreatedAt: s.CreatedAt}
		if s.State == nodeapi.StateStopped {
			e.State = placement.Ended
			if s.Exit != nil {
				e.Reason = s.Exit.Reason
			}
		}
		out = append(out, e)
	}
	return out, nil
}
