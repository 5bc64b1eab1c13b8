package node

import (
	"fmt"
	"net/http"
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// serveInside answers at a port of a sandbox.
func serveInside(t *testing.T, sb nodeapi.Sandbox, port int) {
	t.Helper()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sb.PID))
	must.NoError(t, err)
	defer ns.Close()
	networktest.Serve(t, ns, fmt.Sprintf("0.0.0.0:%d", port))
}

func TestRealPrivate_membersFindEachOtherByName(t *testing.T) {
	w := networktest.New(t)
	networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53", "db.backend. 60 IN A 198.51.100.1", "db. 60 IN A 198.51.100.1")
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	joined := func(network, name string) func(*nodeapi.CreateRequest) {
		return func(r *nodeapi.CreateRequest) {
			internet := false // whatever it may reach outside
			r.Network = &nodeapi.Network{
				Join:   []nodeapi.Membership{{Network: network, Name: name}},
				Layers: []nodeapi.NetworkLayer{{Name: "sandbox", NetworkPolicy: api.NetworkPolicy{Internet: &internet}}},
			}
		}
	}
	web, db := d.create(joined("acme/backend", "web")), d.create(joined("acme/backend", "db"))
	rival, alone := d.create(joined("rival/backend", "web")), d.create()
	serveInside(t, db, 5432)
	table := func(want map[string]bool) {
		t.Helper()
		for name, from := range map[string]nodeapi.Sandbox{"web": web, "rival": rival, "alone": alone} {
			for _, host := range []string{"db", "db.backend", hostOf(d, db)} {
				_, ok := connect(d, from, host, 5432)
				must.EqOp(t, want[name], ok, must.Sprintf("%s to %s", name, host))
			}
		}
	}
	table(map[string]bool{"web": true})
	st, err := d.client.Network(t.Context(), web.ID)
	must.NoError(t, err)
	must.Eq(t, []nodeapi.NetworkMember{{Network: "backend", Name: "db", Address: hostOf(d, db)}}, st.Networks)
	must.EqOp(t, "web", st.Joined[0].Name)
	v, err := d.client.TestNetwork(t.Context(), web.ID, nodeapi.NetworkTest{Name: "db"})
	must.NoError(t, err)
	must.True(t, v.Allow)

	// The daemon is killed and comes back: nothing has changed. Then one joins, and one leaves.
	d.kill()
	d.start()
	table(map[string]bool{"web": true})
	_, err = d.client.SetNetwork(t.Context(), alone.ID, nodeapi.Network{Join: []nodeapi.Membership{{Network: "acme/backend", Name: "late"}}})
	must.NoError(t, err)
	_, err = d.client.SetNetwork(t.Context(), web.ID, nodeapi.Network{})
	must.NoError(t, err)
	table(map[string]bool{"alone": true})

	for text, m := range map[string]nodeapi.Membership{
		"network.join[0].network": {Network: "backend", Name: "x"}, "network.join[0].name": {Network: "acme/backend", Name: "not a name"},
	} {
		_, err = d.client.SetNetwork(t.Context(), web.ID, nodeapi.Network{Join: []nodeapi.Membership{m}})
		must.EqOp(t, http.StatusBadRequest, api.StatusOf(err))
		must.ErrorContains(t, err, text)
	}
}
