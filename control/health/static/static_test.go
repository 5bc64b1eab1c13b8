package static

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/healthtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDirectory_keepsContract(t *testing.T) {
	healthtest.Run(t, func(t *testing.T) healthtest.Harness {
		d, err := New()
		must.NoError(t, err)
		var nodes []health.Node
		return healthtest.Harness{
			Directory: d,
			Add: func(t *testing.T, address string) {
				nodes = append(nodes, health.Node{Address: address})
				must.NoError(t, d.Set(nodes...))
			},
			Remove: func(t *testing.T, address string) {
				nodes = slices.DeleteFunc(nodes, func(n health.Node) bool { return n.Address == address })
				must.NoError(t, d.Set(nodes...))
			},
		}
	})
}

func TestNew_refusesDoubleAndEmptyAddresses(t *testing.T) {
	_, err := New(health.Node{Address: "unix:///a"}, health.Node{Address: "unix:///a"})
	must.ErrorContains(t, err, "listed twice")
	_, err = New(health.Node{Name: "x"})
	must.ErrorContains(t, err, "no address")
}
