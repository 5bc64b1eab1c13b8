package node

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// checkShape checks bounds. Its errors name the field.
func checkShape(s *nodeapi.NetworkShape) error {
	if s == nil {
		return nil
	}
	if err := shape.Direction(s.In).Check(); err != nil {
		return invalid("network.shape.in: %s", err)
	}
	if err := shape.Direction(s.Out).Check(); err != nil {
		return invalid("network.shape.out: %s", err)
	}
	return nil
}

// shapeSlot changes how a sandbox's link carries packets. Where the kernel cannot do what is wanted the link is as it was before.
// used is what counts as carried where the link has no quota yet.
func (n *Node) shapeSlot(s *network.Slot, netns *os.File, want, had *nodeapi.NetworkShape, used uint64) error {
	next, last := nodeapi.NetworkShape{}, nodeapi.NetworkShape{}
	if want != nil {
		next = *want
	}
	if had != nil {
		last = *had
	}
	if next == last {
		return nil
	}
	set := func(to nodeapi.NetworkShape) error {
		if err := n.network.Shape(s, netns, shape.Direction(to.In), shape.Direction(to.Out)); err != nil {
			return err
		}
		return n.network.SetQuota(s, to.Quota, used)
	}
	err := set(next)
	if err == nil {
		return nil
	}
	undo := set(last)
	if errors.Is(err, shape.ErrUnsupported) && undo == nil {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "network.shape: %s", err)
	}
	return errors.Join(err, undo)
}

// reshape is shapeSlot for a sandbox that runs.
func (n *Node) reshape(b *box, s *network.Slot, want, had *nodeapi.NetworkShape) error {
	if want == nil && had == nil {
		return nil
	}
	netns, err := b.netns()
	if err != nil {
		return err
	}
	b.mu.Lock()
	used := b.rec.Carried
	b.mu.Unlock()
	return errors.Join(n.shapeSlot(s, netns, want, had, used), netns.Close())
}

// netns opens the network namespace of a sandbox that runs.
func (b *box) netns() (*os.File, error) {
	b.mu.Lock()
	inst, pid := b.inst, b.rec.Sandbox.PID
	b.mu.Unlock()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("network namespace of sandbox %s: %w", b.id, err)
	}
	select {
	case <-inst.Done(): // the number may be another's by now
		return nil, errors.Join(notRunning(b.view()), f.Close())
	default:
		return f, nil
	}
}
