package fleet

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// hand is a clock that a test moves.
type hand struct{ t time.Time }

func (h *hand) on(d time.Duration) time.Time {
	h.t = h.t.Add(d)
	return h.t
}

func TestDamper_worseAtOnceBetterAtFirstToo(t *testing.T) {
	var d damper
	h := hand{time.Unix(1_700_000_000, 0)}
	d.see(Connecting, "not reached yet", h.on(0))
	d.see(Healthy, "", h.on(time.Second))
	must.Eq(t, Status{State: Healthy, Since: h.t}, d.show(h.t), must.Sprint("a node that is new waits for nothing"))
	d.see(Unhealthy, "the disk is full", h.on(time.Minute))
	fell := h.t
	must.Eq(t, Status{State: Unhealthy, Reason: "the disk is full", Since: fell}, d.show(h.on(0)))
	d.see(Unhealthy, "the disk is fuller", h.on(time.Second))
	must.Eq(t, Status{State: Unhealthy, Reason: "the disk is fuller", Since: fell}, d.show(h.t), must.Sprint("since when is not changed by a new word for it"))
	d.see(Degraded, "the disk is low", h.on(time.Second))
	must.Eq(t, Degraded, d.show(h.t).State)
	d.see(Healthy, "", h.on(time.Second))
	must.Eq(t, Status{State: Healthy, Since: h.t}, d.show(h.t))
}

func TestDamper_aFlappingNodeDoesNotFlapTheView(t *testing.T) {
	var d damper
	h := hand{time.Unix(1_700_000_000, 0)}
	d.see(Healthy, "", h.on(0))
	changes, last := 0, d.show(h.t).State
	look := func() {
		if s := d.show(h.t).State; s != last {
			changes, last = changes+1, s
		}
	}
	for range 40 { // every second up, every second down
		d.see(Connecting, "broken pipe", h.on(time.Second))
		look()
		d.see(Healthy, "", h.on(time.Second))
		look()
	}
	must.Eq(t, 2*freeFalls+1, changes, must.Sprint("two falls are believed to be over, the third stays"))
	must.Eq(t, Connecting, last)
	must.StrContains(t, d.show(h.t).Reason, "got worse 40 times")

	must.Eq(t, Connecting, d.show(h.on(longHold-time.Second)).State)
	shown := d.show(h.on(time.Second))
	must.Eq(t, Healthy, shown.State, must.Sprint("calm for long enough"))
	must.Eq(t, "", shown.Reason)

	h.on(flapWindow)
	d.see(Connecting, "restarted", h.t)
	d.see(Healthy, "", h.on(time.Second))
	must.Eq(t, Healthy, d.show(h.t).State, must.Sprint("what was long ago does not count"))
}

func TestDamper_holdsLongerWithEachFall(t *testing.T) {
	for falls, want := range map[int]time.Duration{
		0: 0, 1: 0, 2: 0, 3: 5 * time.Second, 4: 10 * time.Second, 5: 20 * time.Second, 6: 40 * time.Second, 7: 80 * time.Second, 8: longHold, 99: longHold,
	} {
		must.Eq(t, want, (&damper{falls: make([]time.Time, falls)}).hold(), must.Sprint(falls))
	}
}

func TestStatus_comesFromTheStreamTheNodeAndTheDirectory(t *testing.T) {
	check := func(status nodeapi.CheckStatus) []nodeapi.Check {
		return []nodeapi.Check{{Name: "disk", Status: status, Output: "low"}, {Name: "clock", Status: nodeapi.CheckPassing, Output: "fine"}}
	}
	passing, critical := health.Node{Status: health.Passing}, health.Node{Status: health.Critical, Reason: "TTL expired"}
	well := nodeapi.Node{Healthy: true}
	for name, c := range map[string]struct {
		m    member
		want State
		why  string
	}{
		"all is well":                   {member{connected: true, self: well, entry: passing}, Healthy, ""},
		"no directory that knows":       {member{connected: true, self: well, entry: health.Node{Status: health.Unknown}}, Healthy, ""},
		"a concern":                     {member{connected: true, self: nodeapi.Node{Healthy: true, Checks: check(nodeapi.CheckWarning)}, entry: passing}, Degraded, "disk: low"},
		"a concern that stops it":       {member{connected: true, self: nodeapi.Node{Healthy: true, Checks: check(nodeapi.CheckCritical)}, entry: passing}, Unhealthy, "disk: low"},
		"a check that is not the nodes": {member{connected: true, self: well, entry: health.Node{Status: health.Passing, Reason: "dns is slow"}}, Degraded, "dns is slow"},
		"its own word":                  {member{connected: true, self: nodeapi.Node{Reason: "no overlay"}, entry: passing}, Unhealthy, "no overlay"},
		"the directory's word":          {member{connected: true, self: well, entry: critical}, Unhealthy, "TTL expired"},
		"cut off":                       {member{problem: "no sign of life", self: well, entry: passing}, Connecting, "no sign of life"},
		"dead":                          {member{problem: "refused", self: well, entry: critical}, Unhealthy, "TTL expired"},
	} {
		t.Run(name, func(t *testing.T) {
			state, why := c.m.now()
			must.Eq(t, c.want, state)
			must.Eq(t, c.why, why)
		})
	}
}

func TestStatus_underAMark(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	drain := Mark{State: Draining, Reason: "new kernel", By: "ops", At: at}
	up := Status{State: Healthy, Since: at.Add(-time.Hour)}
	must.Eq(t, up, up.marked(Mark{}))
	must.Eq(t, Status{State: Draining, Reason: "by ops: new kernel", Since: at}, up.marked(drain))
	must.Eq(t, Status{State: Draining, Reason: "by ops", Since: at}, up.marked(Mark{State: Draining, By: "ops", At: at}))
	dead := Status{State: Unhealthy, Reason: "TTL expired", Since: at}
	must.Eq(t, dead, dead.marked(drain), must.Sprint("worse than what was said"))
	must.Eq(t, Unhealthy, up.marked(Mark{State: Unhealthy, At: at}).State)
	for s, takes := range map[State]bool{Healthy: true, Degraded: true, Draining: false, Connecting: false, Unhealthy: false} {
		must.Eq(t, takes, s.TakesWork(), must.Sprint(s))
	}
}
