package lifecycle_test

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// fences are what a placer was told to keep new work from.
type fences struct {
	*pair
	mu sync.Mutex
	on map[api.NodeID]bool
}

func (f *fences) Fence(_ context.Context, node api.NodeID, on bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on[node] = on
	return nil
}

func (f *fences) fenced(node api.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.on[node]
}

func status(s *coretest.Server, id api.NodeID) fleet.Status {
	n, _ := s.Fleet.Node(id)
	return n.Status
}

func mark(t *testing.T, s *coretest.Server, id api.NodeID, order state.NodeOrder, reason string) {
	t.Helper()
	must.NoError(t, s.Sandboxes.MarkNode(t.Context(), id, order, reason, "ops"))
}

func TestMarkNode_keepsNewWorkAwayUntilItIsTakenBack(t *testing.T) {
	s := coretest.New(t, nil)
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	before := running(t, s, nil)
	mark(t, s, s.Node.ID(), state.NodeUnhealthy, "broken fan")
	must.Eq(t, fleet.Unhealthy, status(s, s.Node.ID()).State)
	must.Eq(t, "by ops: broken fan", status(s, s.Node.ID()).Reason)
	_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.Eq(t, api.CodeCapacity, api.CodeOf(err))
	must.ErrorContains(t, err, "is unhealthy (by ops: broken fan)")
	got, err := s.Sandboxes.Get(t.Context(), tenantOf(before), before.ID)
	must.NoError(t, err)
	must.Eq(t, state.Running, got.State, must.Sprint("what runs goes on"))

	s.Stop()
	s.Start(t)
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	must.Eq(t, fleet.Unhealthy, status(s, s.Node.ID()).State, must.Sprint("it is remembered"))
	mark(t, s, s.Node.ID(), "", "")
	must.Eq(t, fleet.Healthy, status(s, s.Node.ID()).State)
	running(t, s, nil)
	must.Eq(t, http.StatusNotFound, api.StatusOf(s.Sandboxes.MarkNode(t.Context(), "nobody", state.NodeDrain, "", "ops")))
}

func TestMarkNode_aDrainMovesWhatRunsAndFencesTheNode(t *testing.T) {
	var f *fences
	s, second, _ := twoNodes(t, true)
	s.Stop()
	f = &fences{pair: s.Config.Placer.(*pair), on: map[api.NodeID]bool{}}
	s.Config.Placer = f
	s.Start(t)
	must.NoError(t, s.ConnectNodes(t.Context(), 2))
	sb := running(t, s, nil)
	must.Eq(t, s.Node.ID(), sb.Node)
	mark(t, s, s.Node.ID(), state.NodeDrain, "new kernel")
	coretest.Until(t, "its move", func() bool {
		got, err := s.Sandboxes.Get(t.Context(), tenantOf(sb), sb.ID)
		return err == nil && got.State == state.Running && got.Node == second.ID()
	})
	coretest.Until(t, "the fence", func() bool { return f.fenced(s.Node.ID()) })
	must.False(t, f.fenced(second.ID()))
	mark(t, s, s.Node.ID(), "", "")
	coretest.Until(t, "no fence", func() bool { return !f.fenced(s.Node.ID()) })
	coretest.Until(t, "nothing to remember", func() bool {
		marks, err := s.State.NodeMarks()
		return err == nil && len(marks) == 0
	})
}

func TestDrain_ofTheSchedulerIsShownAsLongAsItLasts(t *testing.T) {
	s, _, _ := twoNodes(t, true)
	p := s.Config.Placer.(*pair)
	drains := func(ids ...api.NodeID) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.left = slices.Clone(ids)
	}
	drains(s.Node.ID())
	coretest.Until(t, "it is shown", func() bool { return status(s, s.Node.ID()).State == fleet.Draining })
	must.StrContains(t, status(s, s.Node.ID()).Reason, "it drains in nomad")
	drains()
	coretest.Until(t, "it is over", func() bool { return status(s, s.Node.ID()).State == fleet.Healthy })
}

func TestNode_thatIsUnhealthyByItsOwnWordGetsNoWork(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Node.Beat = 20 * time.Millisecond })
	must.NoError(t, s.ConnectNodes(t.Context(), 1))
	s.Node.Self(func(n *nodeapi.Node) { n.Healthy, n.Reason = false, "the disk is full" })
	coretest.Until(t, "its word", func() bool { return status(s, s.Node.ID()).State == fleet.Unhealthy })
	_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.ErrorContains(t, err, "is unhealthy (the disk is full)")
	s.Node.Self(func(n *nodeapi.Node) { n.Healthy, n.Reason = true, "" })
	coretest.Until(t, "its recovery", func() bool { return status(s, s.Node.ID()).State == fleet.Healthy })
	running(t, s, nil)
}
