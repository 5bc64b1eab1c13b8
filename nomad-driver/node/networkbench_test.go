package node

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// BenchmarkPush changes the policy of a running sandbox over the node's API, to one that denies a destination and back: it is in force when the
// answer comes, which a connection from inside checks each time. The floor is a request that changes nothing.
func BenchmarkPush(b *testing.B) {
	w := networktest.New(b)
	networktest.Serve(b, w.Outside, "198.51.100.1:80")
	d := startDaemonIn(b, w.Host, "-network", "on")
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Network = allowing("198.51.100.1") })
	var took, floor []time.Duration
	for round := 0; b.Loop(); round++ {
		start := time.Now()
		_, err := d.client.Network(b.Context(), sb.ID)
		floor = append(floor, time.Since(start))
		must.NoError(b, err)
		open := round%2 == 1
		policy := *allowing("198.51.100.2")
		if open {
			policy = *allowing("198.51.100.1")
		}
		start = time.Now()
		_, err = d.client.SetNetwork(b.Context(), sb.ID, policy)
		took = append(took, time.Since(start))
		must.NoError(b, err)
		_, reached := connect(d, sb, "198.51.100.1", 80)
		must.EqOp(b, open, reached)
	}
	report(b, took, floor)
}
