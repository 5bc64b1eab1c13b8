package lifecycle_test

import (
	"net/http"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/rebalance"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestRebalance_movesFromTheFullNodeToTheEmptyOne(t *testing.T) {
	s, second, _ := twoNodes(t, true) // of two cores and 8 GiB each
	for range 4 {
		running(t, s, func(p *lifecycle.CreateParams) { p.CPUMillis, p.MemoryMB = 500, 512 })
	}
	kept := running(t, s, func(p *lifecycle.CreateParams) { p.CPUMillis, p.MemoryMB, p.QoS = 500, 512, api.QoSGuaranteed })
	must.MapLen(t, 5, s.Node.Running())

	dry, err := s.Rebalance.Show(t.Context(), rebalance.Limits{})
	must.NoError(t, err)
	must.Len(t, 2, dry.Nodes)
	must.Len(t, 2, dry.Moves, must.Sprintf("%+v", dry))
	must.Less(t, dry.Spread, dry.SpreadAfter)
	must.MapLen(t, 5, s.Node.Running(), must.Sprint("a dry run moves nothing"))

	got, err := s.Rebalance.Apply(t.Context(), rebalance.Limits{}, 2)
	must.NoError(t, err)
	must.Len(t, 2, got.Moves)
	for _, m := range got.Moves {
		must.True(t, m.Done, must.Sprint(m.Error))
		must.Eq(t, second.ID(), m.To)
		must.NotEq(t, kept.ID, m.Sandbox, must.Sprint("its class is not moved"))
		must.MapContainsKey(t, second.Running(), m.Sandbox)
		sb, err := s.Sandboxes.Get(t.Context(), kept.Tenant, m.Sandbox)
		must.NoError(t, err)
		must.Eq(t, state.Running, sb.State)
		must.Eq(t, second.ID(), sb.Node)
	}
	again, err := s.Rebalance.Show(t.Context(), rebalance.Limits{})
	must.NoError(t, err)
	must.SliceEmpty(t, again.Moves, must.Sprint("it is even now"))
}

func TestMoveTo_refusesWhatIsNoMove(t *testing.T) {
	s, second, _ := twoNodes(t, true)
	sb := running(t, s, nil)
	must.Eq(t, http.StatusConflict, api.StatusOf(s.Sandboxes.MoveTo(t.Context(), sb.ID, sb.Node)))
	must.Eq(t, http.StatusNotFound, api.StatusOf(s.Sandboxes.MoveTo(t.Context(), api.NewSandboxID(), second.ID())))
	must.Error(t, s.Sandboxes.MoveTo(t.Context(), sb.ID, "nobody"))
	coretest.Until(t, "it runs on where it is", func() bool {
		_, runs := s.Node.Running()[sb.ID]
		return runs
	})
}
