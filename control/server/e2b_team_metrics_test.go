package server

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestTeamHistory_followsFromTheRecords(t *testing.T) {
	t0 := time.Unix(1_000_000, 0).UTC()
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	kept := []state.Sandbox{
		{State: state.Running, StartedAt: at(-100)},                           // from before
		{State: state.Stopped, StartedAt: at(-50), EndedAt: at(-40)},          // gone before
		{State: state.Stopped, StartedAt: at(1), EndedAt: at(3)},              // between two points
		{State: state.Stopped, StartedAt: at(11), EndedAt: at(18)},            // over one
		{State: state.Paused, StartedAt: at(11), PausedAt: at(12)},            // runs no more
		{State: state.Starting, CreatedAt: at(12)},                            // not yet
		{State: state.Running, StartedAt: at(30), EndedAt: time.Time{}},       // after the last point
		{State: state.Failed, CreatedAt: at(1), EndedAt: at(2), Reason: "no"}, // never ran
	}
	got := teamHistory(kept, t0, at(20))
	var concurrent []int
	var rates []float64
	for i, m := range got {
		must.Eq(t, at(5*i), m.Timestamp)
		must.Eq(t, at(5*i).Unix(), m.TimestampUnix)
		concurrent, rates = append(concurrent, m.ConcurrentSandboxes), append(rates, m.SandboxStartRate)
	}
	must.Eq(t, []int{1, 2, 1, 3, 2}, concurrent)
	must.Eq(t, []float64{0, 0.2, 0, 0.4, 0}, rates)
	must.Len(t, 1, teamHistory(nil, t0, t0))
	must.LessEq(t, teamPoints+1, len(teamHistory(nil, t0, t0.Add(maxTeamWindow))))
}

func TestTeamMetrics_ofTheOwnTenant(t *testing.T) {
	now := time.Now()
	h := newHarness(t, func(c *Config) {
		c.Watcher = &fakeWatcher{rows: []state.Sandbox{{State: state.Running, StartedAt: now.Add(-time.Minute)}}}
	})
	path := "/teams/a/metrics"
	got := h.do("GET", path, "")
	must.Eq(t, 200, got.status)
	var list []api.TeamMetric
	must.NoError(t, json.Unmarshal([]byte(got.body), &list))
	must.Eq(t, 1, list[len(list)-1].ConcurrentSandboxes)
	var most api.MaxTeamMetric
	got = h.do("GET", path+"/max?metric=concurrent_sandboxes", "")
	must.Eq(t, 200, got.status)
	must.NoError(t, json.Unmarshal([]byte(got.body), &most))
	must.Eq(t, 1, most.Value)
	must.Eq(t, 400, h.do("GET", path+"/max", "").status)
	must.Eq(t, 400, h.do("GET", path+"?start=20&end=10", "").status)
	must.Eq(t, 400, h.do("GET", path+"?start=1", "").status)
	must.Eq(t, 404, h.do("GET", "/teams/other/metrics", "").status)
}
