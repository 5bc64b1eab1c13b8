package pool_test

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/pool"
	"github.com/soulbox-dev/soulbox/control/reconcile"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func to[T any](v T) *T { return &v }

func spec(n int) api.NewPool {
	return api.NewPool{Name: "quick", PoolSpec: api.PoolSpec{Template: to("base"), Min: &n}}
}

// world is a control server with a pool that is full.
func world(t *testing.T, n int, change func(*coretest.Server)) *coretest.Server {
	t.Helper()
	s := coretest.New(t, change)
	_, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", spec(n))
	must.NoError(t, err)
	full(t, s, n)
	return s
}

func status(t *testing.T, s *coretest.Server) api.PoolStatus {
	t.Helper()
	p, err := s.Pools.Get(state.DefaultTenant, "quick")
	must.NoError(t, err)
	return p.Status
}

func full(t *testing.T, s *coretest.Server, n int) {
	t.Helper()
	coretest.Until(t, fmt.Sprint(n, " slots"), func() bool {
		st := status(t, s)
		return st.Ready == n && st.Making == 0
	})
}

// warm counts the sandboxes of the node that nobody has.
func warm(s *coretest.Server) (n int) {
	for _, sb := range s.Node.Running() {
		if sb.Warm {
			n++
		}
	}
	return n
}

func TestPool_givesAWarmSandboxAndRefills(t *testing.T) {
	s := world(t, 3, nil)
	p := coretest.Params()
	p.EnvVars = map[string]string{"A": "b"}
	sb, steps, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.True(t, sb.Warm)
	must.Eq(t, state.Running, sb.State)
	must.Eq(t, lifecycle.StepClaim, steps[len(steps)-1].Name)
	times, token := s.Node.Claims(sb.ID)
	must.Eq(t, 1, times)
	must.Eq(t, sb.EnvdToken, token)
	must.Eq(t, 1, s.Node.Created(sb.ID))
	full(t, s, 3)
	st := status(t, s)
	must.Eq(t, 1, st.Hits)
	must.Eq(t, 0, st.Misses)
	must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	full(t, s, 3)
	must.Eq(t, 3, warm(s), must.Sprint("a slot is never used again"))
}

func TestPool_missStartsASandboxAndIsCounted(t *testing.T) {
	s := world(t, 0, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.False(t, sb.Warm)
	must.NotEq(t, "", sb.Pool)
	must.Eq(t, 1, status(t, s).Misses)
}

func TestPool_isForCreatesThatFit(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*lifecycle.CreateParams)
		warm   bool
	}{
		"as it is":           {func(*lifecycle.CreateParams) {}, true},
		"with an id":         {func(p *lifecycle.CreateParams) { p.ID = api.NewSandboxID() }, true},
		"of the same size":   {func(p *lifecycle.CreateParams) { p.CPUMillis, p.MemoryMB = 1000, 512 }, true},
		"of the same class":  {func(p *lifecycle.CreateParams) { p.QoS, p.Profile = "burstable", "default" }, true},
		"that pauses":        {func(p *lifecycle.CreateParams) { p.Lifecycle.OnTimeout = state.OnTimeoutPause }, true},
		"of another size":    {func(p *lifecycle.CreateParams) { p.MemoryMB = 1024 }, false},
		"of another class":   {func(p *lifecycle.CreateParams) { p.QoS = "guaranteed" }, false},
		"of another profile": {func(p *lifecycle.CreateParams) { p.Profile = "strict" }, false},
		"with a host name":   {func(p *lifecycle.CreateParams) { p.Hostname = "mine" }, false},
		"with a limit":       {func(p *lifecycle.CreateParams) { p.Limits.PIDs = 10 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := world(t, 1, nil)
			p := coretest.Params()
			c.change(&p)
			sb, _, err := s.Sandboxes.Create(t.Context(), p)
			must.NoError(t, err)
			must.Eq(t, c.warm, sb.Warm)
		})
	}
}

func TestPool_repeatedCreateFindsItsSandbox(t *testing.T) {
	s := world(t, 2, nil)
	p := coretest.Params()
	p.ID = api.NewSandboxID()
	first, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	again, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, first.ID, again.ID)
	full(t, s, 2)
	must.NoError(t, s.Pools.Delete(t.Context(), state.DefaultTenant, "quick"))
	again, _, err = s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, first.ID, again.ID, must.Sprint("also when the pool is gone"))
	p.Template = "sha256:other"
	_, _, err = s.Sandboxes.Create(t.Context(), p)
	must.Error(t, err)
}

func TestPool_herd(t *testing.T) {
	const herd, slots = 1000, 10
	s := world(t, slots, func(s *coretest.Server) {
		s.Config.Pace = func(c *reconcile.Config) {
			coretest.Quick(c)
			c.StartTimeout = time.Minute // the herd's last is started when the others are
		}
	})
	var mu sync.Mutex
	seen := map[api.SandboxID]bool{}
	hits := 0
	var wg sync.WaitGroup
	for range herd {
		wg.Go(func() {
			sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("create: %v", err)
				return
			}
			if seen[sb.ID] {
				t.Errorf("sandbox %s was given twice", sb.ID)
			}
			seen[sb.ID] = true
			if sb.Warm {
				hits++
			}
		})
	}
	wg.Wait()
	must.GreaterEq(t, slots, hits)
	st := status(t, s)
	must.Eq(t, hits, int(st.Hits))
	must.Eq(t, herd-hits, int(st.Misses))
	for id := range seen {
		times, _ := s.Node.Claims(id)
		must.LessEq(t, 1, times)
	}
	full(t, s, slots)
}

func TestPool_makingWaitsForALullOfClaims(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		lull pool.Lull
		want bool
	}{
		"long after a claim":                 {pool.Lull{Claimed: time.Minute, Wanted: 10, Ready: 9}, false},
		"right after one":                    {pool.Lull{Claimed: ms, Wanted: 10, Ready: 9}, true},
		"with half of them left":             {pool.Lull{Claimed: ms, Wanted: 10, Ready: 5}, true},
		"with less than half left":           {pool.Lull{Claimed: 21 * ms, Wanted: 10, Ready: 4}, false},
		"with less than half, in a burst":    {pool.Lull{Claimed: ms, Wanted: 10, Ready: 4}, true},
		"the only one was taken":             {pool.Lull{Claimed: 21 * ms, Wanted: 1, Ready: 0}, false},
		"while one is tried":                 {pool.Lull{Taking: true, Claimed: time.Minute, Wanted: 10, Ready: 4}, true},
		"where claims do not end":            {pool.Lull{Claimed: ms, Since: 251 * ms, Wanted: 10, Ready: 9}, false},
		"where claims have gone on a moment": {pool.Lull{Claimed: ms, Since: 100 * ms, Wanted: 10, Ready: 9}, true},
	} {
		t.Run(name, func(t *testing.T) { must.EqOp(t, c.want, c.lull.Waits()) })
	}
}

func TestPool_slotOfANodeThatRefusesIsNotTheClients(t *testing.T) {
	s := world(t, 2, nil)
	refused := map[api.SandboxID]bool{}
	var mu sync.Mutex
	s.Node.SetHooks(fleettest.Hooks{BeforeClaim: func(id api.SandboxID) error {
		mu.Lock()
		defer mu.Unlock()
		refused[id] = true
		return api.Errorf(http.StatusInternalServerError, "internal", "out of order")
	}})
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err, must.Sprint("it is started for him alone"))
	must.False(t, sb.Warm)
	mu.Lock()
	defer mu.Unlock()
	must.MapNotEmpty(t, refused)
	must.MapNotContainsKey(t, refused, sb.ID)
}

func TestPool_slotsOfAnotherContentAreReplaced(t *testing.T) {
	s := world(t, 2, nil)
	before := s.Node.Running()
	s.Node.PutTemplate("next", []byte("next"))
	coretest.Until(t, "the template is known", func() bool {
		_, err := s.Pools.Change(t.Context(), state.DefaultTenant, "quick", api.PoolSpec{Template: to("next")})
		return err == nil
	})
	coretest.Until(t, "others", func() bool {
		now := s.Node.Running()
		for id := range now {
			if _, old := before[id]; old {
				return false
			}
		}
		return len(now) == 2
	})
}

func TestPool_lostSlotIsReplaced(t *testing.T) {
	s := world(t, 2, nil)
	for id := range s.Node.Running() {
		s.Node.End(id, nodeapi.Exit{Reason: nodeapi.ExitKilled})
		break
	}
	coretest.Until(t, "two run", func() bool { return warm(s) == 2 && status(t, s).Ready == 2 })
}

func TestPool_deleteEndsItsSlotsOnly(t *testing.T) {
	s := world(t, 3, nil)
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	must.NoError(t, s.Pools.Delete(t.Context(), state.DefaultTenant, "quick"))
	coretest.Until(t, "slots are gone", func() bool { return warm(s) == 0 })
	must.MapContainsKey(t, s.Node.Running(), sb.ID)
	_, err = s.Pools.Get(state.DefaultTenant, "quick")
	must.Eq(t, http.StatusNotFound, api.StatusOf(err))
}

func TestPool_restartKeepsSlotsAndLeavesNone(t *testing.T) {
	s := world(t, 3, nil)
	before := s.Node.Running()
	s.Stop()
	s.Start(t)
	full(t, s, 3)
	must.Eq(t, len(before), len(s.Node.Running()))
	for id := range s.Node.Running() {
		must.MapContainsKey(t, before, id)
	}
}

func TestPool_quotaBoundsIt(t *testing.T) {
	s := coretest.New(t, nil)
	must.NoError(t, s.Quotas().Set(t.Context(), state.DefaultTenant, map[string]int64{"sandboxes": 2}, "test"))
	_, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", spec(5))
	must.NoError(t, err)
	full(t, s, 2)
	must.True(t, status(t, s).Limited)
	_, _, err = s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	coretest.Until(t, "one slot less", func() bool { return warm(s) == 1 })
}

func TestPool_ofASuspendedTenantIsEmpty(t *testing.T) {
	s := world(t, 2, nil)
	suspend := func(yes bool) {
		tenant, err := s.State.Tenant(state.DefaultTenant)
		must.NoError(t, err)
		index := tenant.ModifyIndex
		tenant.Suspended = yes
		_, err = s.State.Apply(t.Context(), &state.TenantPut{Tenant: tenant, Index: index})
		must.NoError(t, err)
	}
	suspend(true)
	coretest.Until(t, "its slots go", func() bool { return warm(s) == 0 && status(t, s).Ready == 0 })
	suspend(false)
	full(t, s, 2)
}

func TestPool_saysWhyItIsEmpty(t *testing.T) {
	s := coretest.New(t, nil)
	s.Node.SetHooks(fleettest.Hooks{BeforeCreate: nil})
	n := spec(1)
	n.WarmUp = &[]string{"false"}
	_, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", n)
	must.NoError(t, err)
	coretest.Until(t, "the reason", func() bool { return status(t, s).Problem != "" })
	must.StrContains(t, status(t, s).Problem, `warm-up command "false"`)
	coretest.Until(t, "nothing is left of it", func() bool { st := status(t, s); return st.Ready == 0 && warm(s) <= 1 })
}

func TestPool_createRefuses(t *testing.T) {
	s := world(t, 0, nil)
	for name, c := range map[string]struct {
		change func(*api.NewPool)
		says   string
		status int
	}{
		"a name that is none":       {func(n *api.NewPool) { n.Name = "No Name" }, "name", 400},
		"a name that is taken":      {func(*api.NewPool) {}, "exists already", 409},
		"no template":               {func(n *api.NewPool) { n.Template = nil }, "template is missing", 400},
		"a template that is none":   {func(n *api.NewPool) { n.Name, n.Template = "x", to("none") }, "none", 404},
		"a strategy that is none":   {func(n *api.NewPool) { n.Name, n.Strategy = "x", to("guess") }, "strategy", 400},
		"fewer at most than least":  {func(n *api.NewPool) { n.Name, n.Min, n.Max = "x", to(3), to(2) }, "max", 400},
		"too many":                  {func(n *api.NewPool) { n.Name, n.Min = "x", to(1<<20) }, "min", 400},
		"a size beyond the largest": {func(n *api.NewPool) { n.Name, n.CPUMillis = "x", to(int64(1<<40)) }, "cpu_millis", 400},
		"an age of a moment":        {func(n *api.NewPool) { n.Name, n.MaxAge = "x", to(int64(1)) }, "max_age", 400},
		"an unknown class":          {func(n *api.NewPool) { n.Name, n.QoS = "x", to("best") }, "qos", 400},
	} {
		t.Run(name, func(t *testing.T) {
			n := spec(0)
			c.change(&n)
			_, err := s.Pools.Create(t.Context(), state.DefaultTenant, "test", n)
			must.ErrorContains(t, err, c.says)
			var limit *state.LimitError
			if !errors.As(err, &limit) {
				must.Eq(t, c.status, api.StatusOf(err))
			}
		})
	}
}

// TestPool_serverDiesAroundAClaim: a slot is either still one, or its sandbox is whole and is its owner's alone.
func TestPool_serverDiesAroundAClaim(t *testing.T) {
	died := errors.New("the control service died here")
	for point, claimed := range map[string]bool{lifecycle.CrashBeforeClaim: false, lifecycle.CrashAfterClaim: true} {
		t.Run(point, func(t *testing.T) {
			s := world(t, 1, func(s *coretest.Server) {
				s.Config.Sandboxes = func(c *lifecycle.Config) {
					c.Crash = func(at string) error {
						if at == point {
							return died
						}
						return nil
					}
				}
			})
			p := coretest.Params()
			p.ID = api.NewSandboxID()
			_, _, err := s.Sandboxes.Create(t.Context(), p)
			must.ErrorIs(t, err, died)
			s.Stop()
			s.Config.Sandboxes = nil
			s.Start(t)
			if !claimed {
				full(t, s, 1)
				must.MapLen(t, 1, s.Node.Running())
				return
			}
			live, err := s.State.Live()
			must.NoError(t, err)
			must.Len(t, 1, live)
			coretest.Until(t, "the node is told", func() bool {
				times, token := s.Node.Claims(live[0].ID)
				return times == 1 && token == live[0].EnvdToken
			})
			again, _, err := s.Sandboxes.Create(t.Context(), p)
			must.NoError(t, err)
			must.Eq(t, live[0].ID, again.ID, must.Sprint("the client that asks again gets it"))
		})
	}
}
