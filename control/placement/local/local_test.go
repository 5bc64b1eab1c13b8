package local_test

import (
	"testing"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/placement/placementtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T) (*fleettest.Node, *local.Placer) {
	node := fleettest.New(t)
	client := nodeapi.NewUnix(node.Socket)
	t.Cleanup(client.Close)
	placer := local.New(client)
	t.Cleanup(placer.Close)
	return node, placer
}

func TestPlacer_keepsContract(t *testing.T) {
	placementtest.Run(t, func(t *testing.T) placementtest.Harness {
		node, placer := start(t)
		return placementtest.Harness{
			Placer: placer, Template: "base", Made: node.Created,
			Runs: func(id api.SandboxID) bool { _, ok := node.Running()[id]; return ok },
			EndByItself: func(_ *testing.T, id api.SandboxID) {
				node.End(id, nodeapi.Exit{Reason: nodeapi.ExitMainExited})
			},
		}
	})
}

func TestPlacer_listsOnlyWhatTheControlServicePlaced(t *testing.T) {
	node, placer := start(t)
	node.Run(nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base", Owner: nodeapi.Owner{Kind: "nomad"}})
	mine := api.NewSandboxID()
	must.NoError(t, placer.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{ID: mine, Template: "base"}}))
	list, err := placer.List(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, list)
	must.Eq(t, mine, list[0].ID)
}

func TestPlacer_nodeThatIsDown(t *testing.T) {
	node, placer := start(t)
	node.Kill()
	err := placer.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base"}})
	must.ErrorIs(t, err, nodeapi.ErrUnreachable)
	must.Eq(t, 503, api.StatusOf(err))
	must.Error(t, placer.Stop(t.Context(), api.NewSandboxID()))
	_, err = placer.List(t.Context())
	must.Error(t, err)
}

func TestPlacer_holdsRulesAgainstItsNode(t *testing.T) {
	node, placer := start(t)
	node.Self(func(n *nodeapi.Node) {
		n.Kernel, n.Probes = "6.18.5", []nodeapi.Probe{{Name: "idmapped_mounts", OK: true}}
	})
	place := func(attribute, operator, value string) error {
		rules, err := placement.ParseRules(&api.Placement{
			Constraints: []api.PlacementRule{{Attribute: attribute, Operator: operator, Value: value}}, Strategy: api.PlaceSpread,
		})
		must.NoError(t, err)
		return placer.Place(t.Context(), placement.Request{Rules: rules, Node: nodeapi.CreateRequest{ID: api.NewSandboxID(), Template: "base"}})
	}
	must.NoError(t, place("kernel.idmapped_mounts", "=", "true"))
	must.NoError(t, place("attr.kernel.version", "version", ">= 6.1"))
	must.NoError(t, place("attr.cpu.numcores", ">=", "2"))
	err := place("node.datacenter", "=", "dc1")
	must.Eq(t, api.CodeCapacity, api.CodeOf(err))
	must.ErrorContains(t, err, `node.datacenter is "local", which is not = dc1`)
	must.MapLen(t, 3, node.Running())
}
