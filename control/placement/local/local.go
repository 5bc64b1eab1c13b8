// Package local places every sandbox on one node, which it calls directly.
//
// It keeps no memory of its own but of the calls under way: the node's records are the placements.
package local

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// abortGrace is how long the node has to give up a creation whose sandbox was deleted, until its call is cut.
const abortGrace = 2 * time.Second

// Placer is a placement.Placer on one node.
type Placer struct {
	node   *nodeapi.Client
	ctx    context.Context // of the calls: they go on when the caller of Place gives up, so that Stop knows their end
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	calls map[api.SandboxID]*call
}

// call is a creation under way.
type call struct {
	cancel context.CancelFunc
	done   chan struct{} // closed once err is set
	err    error
}

var _ placement.Placer = (*Placer)(nil)

// New returns a placer on the node that client speaks to. The caller closes the placer, then the client.
func New(client *nodeapi.Client) *Placer {
	ctx, cancel := context.WithCancel(context.Background())
	return &Placer{node: client, ctx: ctx, cancel: cancel, calls: map[api.SandboxID]*call{}}
}

// Close cuts the calls under way. What the node makes of them is found by the next List.
func (p *Placer) Close() {
	p.cancel()
	p.wg.Wait()
}

// Place implements placement.Placer. It returns when the sandbox runs, or with the node's own error.
func (p *Placer) Place(ctx context.Context, req placement.Request) error {
	if req.Dedicated {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported,
			"isolation.compute of tenant %s is dedicated, and this server has one node for all tenants: nodes of a tenant's own need nomad", req.Tenant)
	}
	if err := p.allows(ctx, req); err != nil {
		return fmt.Errorf("place sandbox %s: %w", req.Node.ID, err)
	}
	c := p.begin(req.Node)
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("place sandbox %s: %w", req.Node.ID, c.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("place sandbox %s: %w", req.Node.ID, ctx.Err())
	}
}

// allows holds a request's constraints against the one node. What a scheduler finds out of machines (attr, label) nobody knows here.
func (p *Placer) allows(ctx context.Context, req placement.Request) error {
	rules := req.Rules.Placement()
	if len(rules.Devices) > 0 {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported,
			"placement.devices: %s is asked for, and this server has one node of its own: devices are reserved by nomad and its device plugins", rules.Devices[0].Name)
	}
	if len(rules.Constraints) == 0 {
		return nil
	}
	n, err := p.node.Node(ctx)
	if err != nil {
		return err
	}
	have := map[string]string{
		"node.id": string(n.ID), "node.name": n.Name, "node.datacenter": "local", "node.region": "local",
		"attr.kernel.version": n.Kernel, "attr.cpu.numcores": strconv.Itoa(n.CPUs), "attr.memory.totalbytes": strconv.FormatInt(n.MemoryBytes, 10),
	}
	for _, probe := range n.Probes {
		have["kernel."+probe.Name] = strconv.FormatBool(probe.OK)
	}
	if why := req.Rules.Allows(have); why != "" {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "no node can take it: of 1 node, %s", why)
	}
	return nil
}

// begin starts the creation of a sandbox, or returns the one that is under way.
func (p *Placer) begin(req nodeapi.CreateRequest) *call {
	req.Owner = nodeapi.Owner{Kind: placement.OwnerKind}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.calls[req.ID]; ok {
		return c
	}
	ctx, cancel := context.WithCancel(p.ctx)
	c := &call{cancel: cancel, done: make(chan struct{})}
	p.calls[req.ID] = c
	p.wg.Go(func() {
		defer cancel()
		_, c.err = p.node.Create(ctx, req)
		p.mu.Lock()
		delete(p.calls, req.ID)
		p.mu.Unlock()
		close(c.done)
	})
	return c
}

// Stop implements placement.Placer. The node kills everything in the sandbox and removes what it held.
func (p *Placer) Stop(ctx context.Context, id api.SandboxID) error {
	p.mu.Lock()
	c := p.calls[id]
	p.mu.Unlock()
	err := p.delete(ctx, id)
	if c == nil {
		return err
	}
	// The creation under way may have come before or after the delete: only once it has ended does a delete count.
	cut := time.AfterFunc(abortGrace, c.cancel)
	defer cut.Stop()
	select {
	case <-c.done:
		return p.delete(ctx, id)
	case <-ctx.Done():
		return fmt.Errorf("stop sandbox %s: %w", id, ctx.Err())
	}
}

func (p *Placer) delete(ctx context.Context, id api.SandboxID) error {
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
		if s.Owner.Kind != placement.OwnerKind {
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
