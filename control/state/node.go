package state

import (
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// NodeOrder is what an operator has said about a node.
type NodeOrder string

// The orders. None of them ends a sandbox.
const (
	NodeDrain     NodeOrder = "draining"  // it gets no new sandbox, and what runs there moves away
	NodeUnhealthy NodeOrder = "unhealthy" // it gets no new sandbox
)

// NodeMark is a node of which something has been said that is not what its checks say.
type NodeMark struct {
	Node   api.NodeID `codec:"node"`
	Order  NodeOrder  `codec:"order"` // empty: none any more
	Reason string     `codec:"reason"`
	By     string     `codec:"by"` // who said it; ByScheduler: the scheduler's own operators did
	At     time.Time  `codec:"at"`
	// Fenced tells that the scheduler has been told, or is being told, to place nothing there.
	Fenced bool `codec:"fenced"`

	CreateIndex uint64 `codec:"create_index"`
	ModifyIndex uint64 `codec:"modify_index"`
}

// ByScheduler is who drains a node that was not drained here, but where the scheduler is.
const ByScheduler = "scheduler"

// NodePut records an order about a node, in place of the one before. An empty order takes it back.
type NodePut struct {
	Node   api.NodeID `codec:"node"`
	Order  NodeOrder  `codec:"order"`
	Reason string     `codec:"reason"`
	By     string     `codec:"by"`
	At     time.Time  `codec:"at"`
}

func (*NodePut) kind() commandType { return typeNodePut }

func (c *NodePut) check() error {
	if err := checkNode(c.Node); err != nil {
		return err
	}
	switch c.Order {
	case "", NodeDrain, NodeUnhealthy:
	default:
		return limitErrorf("status", "is %.40q: %s and %s are orders", c.Order, NodeDrain, NodeUnhealthy)
	}
	if len(c.Reason) > MaxDescription || !clean(c.Reason) {
		return limitErrorf("reason", "is not UTF-8 of at most %d bytes", MaxDescription)
	}
	return nil
}

func (c *NodePut) apply(tx *writeTx) (Result, error) {
	return tx.node(c.Node, func(m *NodeMark) {
		m.Order, m.Reason, m.By, m.At = c.Order, c.Reason, c.By, c.At
		if c.Order == "" {
			m.Reason, m.By = "", ""
		}
	})
}

// NodeFence records that the scheduler is told to place nothing on a node, before it is, or has been told that it may again.
type NodeFence struct {
	Node   api.NodeID `codec:"node"`
	Fenced bool       `codec:"fenced"`
}

func (*NodeFence) kind() commandType { return typeNodeFence }

func (c *NodeFence) check() error { return checkNode(c.Node) }

func (c *NodeFence) apply(tx *writeTx) (Result, error) {
	return tx.node(c.Node, func(m *NodeMark) { m.Fenced = c.Fenced })
}

func checkNode(id api.NodeID) error {
	if id == "" || len(id) > MaxSubject || !clean(string(id)) {
		return limitErrorf("node", "is not 1 to %d bytes of UTF-8", MaxSubject)
	}
	return nil
}

// node changes the mark of a node. One that says nothing any more goes.
func (t *writeTx) node(id api.NodeID, change func(*NodeMark)) (Result, error) {
	old, err := first[NodeMark](t.txn, tableNode, string(id))
	if err != nil {
		return Result{}, err
	}
	m := NodeMark{Node: id, CreateIndex: t.index}
	if old != nil {
		m = *old
	}
	change(&m)
	m.ModifyIndex = t.index
	switch {
	case m.Order != "" || m.Fenced:
		err = t.txn.Insert(tableNode, &m)
	case old != nil:
		err = t.txn.Delete(tableNode, old)
	default:
		return Result{}, nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("write node %s: %w", id, err)
	}
	return Result{Changed: 1}, nil
}

// NodeMark returns what was said about a node; the zero mark where nothing was.
func (s *Store) NodeMark(id api.NodeID) (NodeMark, error) {
	m, err := first[NodeMark](s.read(), tableNode, string(id))
	if err != nil || m == nil {
		return NodeMark{}, err
	}
	return *m, nil
}

// NodeMarks returns all that was said about nodes, by their ids.
func (s *Store) NodeMarks() ([]NodeMark, error) {
	it, err := s.read().Get(tableNode, indexID)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", tableNode, err)
	}
	var out []NodeMark
	for row := it.Next(); row != nil; row = it.Next() {
		if m, ok := row.(*NodeMark); ok {
			out = append(out, *m)
		}
	}
	return out, nil
}
