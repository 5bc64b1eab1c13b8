package lifecycle

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
)

// MarkNode records what an operator says about a node: that it is to be left, or is to get nothing new. An empty order takes it back. The
// node need not answer, but must be known.
func (s *Service) MarkNode(ctx context.Context, id api.NodeID, order state.NodeOrder, reason, by string) error {
	if _, ok := s.node(id); !ok {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "node %.80q does not exist", id)
	}
	_, err := s.cfg.State.Apply(ctx, &state.NodePut{Node: id, Order: order, Reason: reason, By: by, At: s.cfg.Now().UTC()})
	if err != nil {
		return stateError("", err)
	}
	s.cfg.Logger.Info("node marked", "node", id, "order", cmp.Or(string(order), "none"), "reason", reason, "by", by)
	return nil
}

// node returns a node by the id that it, or the directory, says.
func (s *Service) node(id api.NodeID) (fleet.Node, bool) {
	for _, n := range s.cfg.Fleet.Nodes() {
		if id != "" && (n.Self.ID == id || n.Self.ID == "" && n.Entry.ID == id) {
			return n, true
		}
	}
	return fleet.Node{}, false
}

// someNode says, where no node takes new work, why each does not.
func (s *Service) someNode() error {
	var whys []string
	for _, n := range s.cfg.Fleet.Nodes() {
		if n.Status.State.TakesWork() {
			return nil
		}
		why := string(n.Status.State)
		if n.Status.Reason != "" {
			why += " (" + n.Status.Reason + ")"
		}
		whys = append(whys, fmt.Sprintf("%s is %s", cmp.Or(n.Self.Name, n.Entry.Name, string(n.Self.ID), n.Entry.Address), why))
	}
	if len(whys) == 0 {
		whys = append(whys, "none is known")
	}
	return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "no node takes new sandboxes: %.600s", strings.Join(whys, "; "))
}

// draining returns the nodes that are to be left. A drain that was begun where the scheduler is becomes a mark, and ends as one when it
// is over there.
func (s *Service) draining(ctx context.Context) ([]api.NodeID, error) {
	marks, err := s.cfg.State.NodeMarks()
	if err != nil {
		return nil, err
	}
	var left, there []api.NodeID
	if d, ok := s.cfg.Placer.(placement.Drainer); ok {
		if there, err = d.Draining(ctx); err != nil {
			return nil, err
		}
	}
	marked := map[api.NodeID]bool{}
	for _, m := range marks {
		if m.By == state.ByScheduler && m.Order == state.NodeDrain && !slices.Contains(there, m.Node) {
			if _, err := s.cfg.State.Apply(ctx, &state.NodePut{Node: m.Node, At: s.cfg.Now().UTC()}); err != nil {
				return nil, err
			}
			continue
		}
		marked[m.Node] = m.Order != ""
		if m.Order == state.NodeDrain {
			left = append(left, m.Node)
		}
	}
	for _, id := range there {
		if marked[id] {
			if !slices.Contains(left, id) {
				left = append(left, id)
			}
			continue
		}
		left = append(left, id)
		if _, known := s.node(id); !known {
			continue
		}
		if _, err := s.cfg.State.Apply(ctx, &state.NodePut{
			Node: id, Order: state.NodeDrain, Reason: "it drains in nomad", By: state.ByScheduler, At: s.cfg.Now().UTC(),
		}); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// fence has the placer place nothing on nodes that take no work, and lets it again when they do. What it is told is recorded first, so that
// what a service that died has fenced is let go by the next; told is what this run has told it.
func (s *Service) fence(ctx context.Context, told map[api.NodeID]bool) error {
	fencer, ok := s.cfg.Placer.(placement.Fencer)
	if !ok {
		return nil
	}
	marks, err := s.cfg.State.NodeMarks()
	if err != nil {
		return err
	}
	fenced := map[api.NodeID]bool{}
	for _, m := range marks {
		if m.Fenced {
			fenced[m.Node] = true
		}
	}
	for _, n := range s.cfg.Fleet.Nodes() {
		id := n.Self.ID
		if id == "" || n.Mark.By == state.ByScheduler { // the scheduler has done it itself
			continue
		}
		// One that merely does not answer is the scheduler's to judge: it may be this server that is cut off.
		want := n.Status.State == fleet.Draining || n.Status.State == fleet.Unhealthy || n.Mark.State != ""
		switch {
		case want && !fenced[id]:
			if _, err := s.cfg.State.Apply(ctx, &state.NodeFence{Node: id, Fenced: true}); err != nil {
				return err
			}
			fallthrough
		case want && !told[id]:
			if err := fencer.Fence(ctx, id, true); err != nil {
				return err
			}
			told[id] = true
		case !want && fenced[id] && n.Status.State.TakesWork():
			if err := fencer.Fence(ctx, id, false); err != nil {
				return err
			}
			if _, err := s.cfg.State.Apply(ctx, &state.NodeFence{Node: id}); err != nil {
				return err
			}
			delete(told, id)
		}
	}
	return nil
}

// Prefer returns the node that a sandbox had better run on by its rules' strategy: with spread, of those that take work, the one with the
// fewest sandboxes for its size. Empty: that is the placer's to choose.
func (s *Service) Prefer(rules placement.Rules) api.NodeID { return Spread(rules, s.cfg.Fleet.Nodes) }

// Spread is Service.Prefer for whoever knows the nodes.
func Spread(rules placement.Rules, nodes func() []fleet.Node) api.NodeID {
	if rules.Placement().Strategy != api.PlaceSpread {
		return ""
	}
	var best api.NodeID
	least, equal := 0.0, 0
	for _, n := range nodes() {
		if !n.Status.State.TakesWork() {
			continue
		}
		load := float64(n.Sandboxes) / float64(max(1, n.Self.MaxSandbox))
		switch {
		case best == "" || load < least:
			best, least, equal = n.Self.ID, load, 1
		case load == least: // so that many at once do not all go to the first
			if equal++; rand.N(equal) == 0 {
				best = n.Self.ID
			}
		}
	}
	return best
}
