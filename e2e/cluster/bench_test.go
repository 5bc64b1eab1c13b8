package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// life is one sandbox from the call of the placer to its end, and how long its parts took.
type life struct {
	sandbox  nodeapi.Sandbox
	accepted time.Duration // call to Nomad's acceptance of the dispatch
	reported time.Duration // call to the node's report that it runs
	stopped  time.Duration // call of the stop to the node's having nothing of it
}

// live makes a sandbox through Nomad and ends it.
func (c *cluster) live(t testing.TB, seen *events, limits nodeapi.Limits) life {
	t.Helper()
	var l life
	req := request(limits)
	begin := time.Now()
	must.NoError(t, c.placer.Place(t.Context(), req))
	l.accepted = time.Since(begin)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	at, err := seen.waitRunning(ctx, req.Node.ID)
	if err != nil {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		t.Fatal(errors.Join(err, c.placer.Watch(ctx, req.Node.ID)))
	}
	l.reported = at.Sub(begin)
	l.sandbox, err = c.node.Get(t.Context(), req.Node.ID)
	must.NoError(t, err)
	end := time.Now()
	must.NoError(t, c.placer.Stop(t.Context(), req.Node.ID))
	for {
		if _, err := c.node.Get(t.Context(), req.Node.ID); api.IsNotFound(err) {
			break
		}
		must.Less(t, 20*time.Second, time.Since(end))
		time.Sleep(2 * time.Millisecond)
	}
	l.stopped = time.Since(end)
	return l
}

// whole is a size whose processor limit does not slow the start down, as a few hundredths of a core would.
var whole = nodeapi.Limits{CPUMillis: 1000, MemoryBytes: 256 << 20}

// BenchmarkCreate is a create through Nomad, from the placer's call to the node's own report, and the steps on its way. The
// floor is the same create asked of the same node, over the same connection, without Nomad.
func BenchmarkCreate(b *testing.B) {
	c := start(b)
	seen := c.follow(b)
	c.live(b, seen, whole) // with the registration of its parent job
	var reported, stopped, floor []time.Duration
	var names []string // of the steps on the node, in their order
	steps := map[string][]time.Duration{}
	for b.Loop() {
		req := request(whole).Node
		req.Owner.Kind = "test"
		begin := time.Now()
		_, err := c.node.Create(b.Context(), req)
		floor = append(floor, time.Since(begin))
		must.NoError(b, err)
		must.NoError(b, c.node.Delete(b.Context(), req.ID))

		l := c.live(b, seen, whole)
		reported, stopped = append(reported, l.reported), append(stopped, l.stopped)
		onNode := l.sandbox.StartedAt.Sub(l.sandbox.CreatedAt)
		for _, s := range []struct {
			name string
			d    time.Duration
		}{
			{"dispatch-accepted", l.accepted},
			{"to-the-driver", l.reported - l.accepted - onNode}, // Nomad's scheduling, the client's hooks, and the report's way back
			{"on-the-node", onNode},
		} {
			if steps[s.name] == nil {
				names = append(names, s.name)
			}
			steps[s.name] = append(steps[s.name], s.d)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(reported, .5), "p50-µs")
	b.ReportMetric(quantile(reported, .99), "p99-µs")
	b.ReportMetric(quantile(floor, .5), "floor-p50-µs")
	b.ReportMetric(quantile(reported, .5)/quantile(floor, .5), "x-floor")
	b.ReportMetric(quantile(stopped, .5), "destroy-p50-µs")
	b.ReportMetric(quantile(stopped, .99), "destroy-p99-µs")
	for i, name := range names { // numbered, since the testing package sorts them
		b.ReportMetric(quantile(steps[name], .5), fmt.Sprintf("step-%02d-%s-p50-µs", i, name))
		b.ReportMetric(quantile(steps[name], .99), fmt.Sprintf("step-%02d-%s-p99-µs", i, name))
	}
}

// quantile returns the q-quantile in microseconds.
func quantile(d []time.Duration, q float64) float64 {
	slices.Sort(d)
	return float64(d[min(len(d)-1, int(q*float64(len(d))))].Nanoseconds()) / 1000
}
