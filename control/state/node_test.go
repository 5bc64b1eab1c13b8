package state

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// nodeScript is the part of script about nodes.
func nodeScript() []Command {
	return []Command{
		&NodePut{Node: "n1", Order: NodeDrain, Reason: "kernel upgrade", By: "ops", At: at(0)},
		&NodeFence{Node: "n1", Fenced: true},
		&NodePut{Node: "n1", At: at(60)},
		&NodeFence{Node: "n1"},
		&NodePut{Node: "n2"},
		&NodePut{Node: "n3", Order: NodeUnhealthy, Reason: "broken fan", By: "ops", At: at(61)},
	}
}

func TestNodeMarks_anOrderStaysUntilItIsTakenBack(t *testing.T) {
	marks := func(n int) []NodeMark {
		t.Helper()
		list, err := replay(t, nodeScript()[:n]).store.NodeMarks()
		must.NoError(t, err)
		for i := range list {
			list[i].CreateIndex, list[i].ModifyIndex = 0, 0
		}
		return list
	}
	must.Eq(t, []NodeMark{{Node: "n1", Order: NodeDrain, Reason: "kernel upgrade", By: "ops", At: at(0), Fenced: true}}, marks(2))
	must.Eq(t, []NodeMark{{Node: "n1", At: at(60), Fenced: true}}, marks(3), must.Sprint("the scheduler is yet to be told"))
	must.SliceEmpty(t, marks(4))
	must.SliceEmpty(t, marks(5), must.Sprint("there was nothing to take back"))
	must.Eq(t, []NodeMark{{Node: "n3", Order: NodeUnhealthy, Reason: "broken fan", By: "ops", At: at(61)}}, marks(6))
}

func TestNodePut_refuses(t *testing.T) {
	for name, c := range map[string]*NodePut{
		"node":   {Order: NodeDrain},
		"status": {Node: "n1", Order: "gone"},
		"reason": {Node: "n1", Order: NodeDrain, Reason: strings.Repeat("x", MaxDescription+1)},
	} {
		must.ErrorContains(t, c.check(), name)
	}
	must.Error(t, (&NodeFence{Node: api.NodeID("\xff")}).check())
}
