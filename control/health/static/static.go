// Package static is the directory of nodes that a configuration names, such as the one node of this machine.
//
// It has no checks: whether a node answers is for package fleet to find out, so every status is unknown.
package static

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/soulbox-dev/soulbox/control/health"
)

// Directory is a fixed list of nodes that Set may replace.
type Directory struct {
	mu      sync.Mutex
	view    health.View
	changed chan struct{} // closed at the next change
}

var _ health.Directory = (*Directory)(nil)

// New returns a directory of nodes, or an error where two have one address.
func New(nodes ...health.Node) (*Directory, error) {
	d := &Directory{changed: make(chan struct{})}
	if err := d.Set(nodes...); err != nil {
		return nil, err
	}
	return d, nil
}

// Set replaces the list.
func (d *Directory) Set(nodes ...health.Node) error {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		if nodes[i].Status == "" {
			nodes[i].Status = health.Unknown
		}
	}
	slices.SortFunc(nodes, func(a, b health.Node) int { return cmp.Compare(a.Address, b.Address) })
	for i, n := range nodes {
		if n.Address == "" {
			return fmt.Errorf("node %q has no address", n.Name)
		}
		if i > 0 && nodes[i-1].Address == n.Address {
			return fmt.Errorf("address %s is listed twice", n.Address)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view = health.View{Index: d.view.Index + 1, Nodes: nodes}
	close(d.changed)
	d.changed = make(chan struct{})
	return nil
}

// Nodes implements health.Directory.
func (d *Directory) Nodes(ctx context.Context, after uint64) (health.View, error) {
	for {
		d.mu.Lock()
		view, changed := d.view, d.changed
		d.mu.Unlock()
		if view.Index > after {
			view.Nodes = slices.Clone(view.Nodes)
			return view, nil
		}
		select {
		case <-ctx.Done():
			return health.View{}, ctx.Err()
		case <-changed:
		}
	}
}
