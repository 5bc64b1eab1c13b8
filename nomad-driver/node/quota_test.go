package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// A quota is used up, says so, outlives the daemon, and is raised while the sandbox runs.
func TestRealNetwork_aQuotaOfBytesEndsTheTrafficUntilItIsRaised(t *testing.T) {
	w := networktest.New(t)
	networktest.Serve(t, w.Outside, "198.51.100.1:80")
	d := startDaemonIn(t, w.Host, "-network", "on")
	shaped := func(quota uint64) nodeapi.Network {
		return nodeapi.Network{Shape: &nodeapi.NetworkShape{Quota: quota, Out: api.NetworkDirection{Rate: 1 << 20}}}
	}
	first := shaped(600)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = &first })
	reaches := func() bool {
		_, code := d.exec(sb, "bash", "-c", `exec 3<>/dev/udp/198.51.100.1/80; for i in 1 2; do echo x >&3; read -t 1 -n 1 <&3 && exit 0; done; exit 1`)
		return code == 0
	}
	quota := func() nodeapi.NetworkQuota {
		st, err := d.client.Network(t.Context(), sb.ID)
		must.NoError(t, err)
		must.NotNil(t, st.Quota)
		return *st.Quota
	}
	must.True(t, reaches())
	must.Between(t, 60, quota().Used, 300)
	for i := 0; reaches(); i++ {
		must.Less(t, 30, i)
	}
	q := quota()
	must.Eq(t, nodeapi.NetworkQuota{Limit: 600, Used: q.Used, UsedUp: true}, q)
	said := func() int {
		list, err := d.client.Logbook(t.Context(), sb.ID, nodeapi.LogQuery{})
		must.NoError(t, err)
		return len(slices.DeleteFunc(list, func(e api.LogEntry) bool { return !strings.Contains(e.Message, "network quota is used up") }))
	}
	for end := time.Now().Add(20 * time.Second); said() == 0; time.Sleep(50 * time.Millisecond) {
		must.True(t, time.Now().Before(end), must.Sprint("its log says so"))
	}
	must.EqOp(t, 1, said())

	d.kill()
	d.start()
	must.True(t, quota().UsedUp)
	must.False(t, reaches())
	_, err := d.client.SetNetwork(t.Context(), sb.ID, shaped(1<<20))
	must.NoError(t, err)
	must.True(t, reaches())
	must.GreaterEq(t, q.Used, quota().Used)
	_, err = d.client.SetNetwork(t.Context(), sb.ID, nodeapi.Network{})
	must.NoError(t, err)
	must.True(t, reaches())
	st, err := d.client.Network(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Nil(t, st.Quota)
}
