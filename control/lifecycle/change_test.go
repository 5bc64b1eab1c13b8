package lifecycle_test

import (
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func create(t *testing.T, s *coretest.Server) state.Sandbox {
	t.Helper()
	sb, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.NoError(t, err)
	return sb
}

func TestDelete_endsAndIsGone(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	must.Eq(t, 0, s.Node.Records())
	now, err := s.Sandboxes.Get(t.Context(), sb.Tenant, sb.ID)
	must.NoError(t, err)
	must.Eq(t, state.Stopped, now.State)
	must.Eq(t, 404, api.StatusOf(s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID)))
}

func TestDelete_atOnceByMany(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 8 {
		wg.Go(func() {
			err := s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID)
			mu.Lock()
			defer mu.Unlock()
			codes[api.StatusOf(err)]++
		})
	}
	wg.Wait()
	must.Eq(t, map[int]int{200: 1, 404: 7}, codes)
}

func TestDeadline_moves(t *testing.T) {
	s := coretest.New(t, func(s *coretest.Server) { s.Config.MaxLifetime = 2 * time.Hour })
	sb := create(t, s)
	left := func(sb state.Sandbox) time.Duration { return time.Until(sb.EndAt).Round(time.Minute) }
	for _, c := range []struct {
		name string
		call func() (state.Sandbox, error)
		want time.Duration
	}{
		{"refresh extends", func() (state.Sandbox, error) {
			return s.Sandboxes.Refresh(t.Context(), sb.Tenant, sb.ID, 30*time.Minute)
		}, 30 * time.Minute},
		{"refresh never shortens", func() (state.Sandbox, error) {
			return s.Sandboxes.Refresh(t.Context(), sb.Tenant, sb.ID, time.Minute)
		}, 30 * time.Minute},
		{"connect never shortens", func() (state.Sandbox, error) {
			sb, resumed, err := s.Sandboxes.Connect(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)
			must.False(t, resumed)
			return sb, err
		}, 30 * time.Minute},
		{"connect extends", func() (state.Sandbox, error) {
			sb, _, err := s.Sandboxes.Connect(t.Context(), sb.Tenant, sb.ID, 40*time.Minute, lifecycle.KeepMemory)
			return sb, err
		}, 40 * time.Minute},
		{"set shortens", func() (state.Sandbox, error) {
			return s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, 5*time.Minute)
		}, 5 * time.Minute},
		{"set extends up to the maximum", func() (state.Sandbox, error) {
			return s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, 2*time.Hour)
		}, 2 * time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.call()
			must.NoError(t, err)
			must.Eq(t, c.want, left(got))
			must.False(t, got.EndAt.After(got.MaxEndAt))
			must.True(t, s.Node.Running()[sb.ID].Deadline.Equal(got.EndAt), must.Sprint("the node knows before the answer"))
		})
	}
	_, err := s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, 3*time.Hour)
	must.EqError(t, err, "Timeout cannot be greater than 2 hours")
	must.Eq(t, 400, api.StatusOf(err))
	_, err = s.Sandboxes.Refresh(t.Context(), sb.Tenant, sb.ID, -time.Second)
	must.Eq(t, 400, api.StatusOf(err))
}

func TestDeadline_zeroEndsIt(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	_, err := s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, 0)
	must.NoError(t, err)
	coretest.Until(t, "it ends", func() bool {
		now, err := s.Sandboxes.Get(t.Context(), sb.Tenant, sb.ID)
		return err == nil && now.State == state.Stopped && now.Reason == nodeapi.ExitDeadline
	})
}

func TestOtherTenant_seesNothing(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	const other = "other"
	for name, call := range map[string]func() error{
		"get":     func() error { _, err := s.Sandboxes.Get(t.Context(), other, sb.ID); return err },
		"delete":  func() error { return s.Sandboxes.Delete(t.Context(), other, sb.ID) },
		"timeout": func() error { _, err := s.Sandboxes.SetTimeout(t.Context(), other, sb.ID, time.Minute); return err },
		"refresh": func() error { _, err := s.Sandboxes.Refresh(t.Context(), other, sb.ID, time.Minute); return err },
		"connect": func() error {
			_, _, err := s.Sandboxes.Connect(t.Context(), other, sb.ID, time.Minute, lifecycle.KeepMemory)
			return err
		},
		"health": func() error { _, err := s.Sandboxes.Health(t.Context(), other, sb.ID); return err },
		"node":   func() error { _, err := s.Sandboxes.NodeFor(t.Context(), other, sb.ID); return err },
	} {
		must.Eq(t, 404, api.StatusOf(call()), must.Sprint(name))
	}
	l, err := s.Sandboxes.List(t.Context(), state.Filter{Tenant: other}, state.Descending, state.Page{})
	must.NoError(t, err)
	must.SliceEmpty(t, l.Sandboxes)
	must.MapContainsKey(t, s.Node.Running(), sb.ID)
}

func TestHealth_saysHowItIs(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	h, err := s.Sandboxes.Health(t.Context(), sb.Tenant, sb.ID)
	must.NoError(t, err)
	must.True(t, h.OK())
	must.Eq(t, fleettest.Version, h.Version)
	must.Positive(t, h.Uptime)
	must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	h, err = s.Sandboxes.Health(t.Context(), sb.Tenant, sb.ID)
	must.NoError(t, err)
	must.False(t, h.OK())
	must.StrContains(t, h.Reason, "stopped")
	_, err = s.Sandboxes.Health(t.Context(), sb.Tenant, api.NewSandboxID())
	must.Eq(t, 404, api.StatusOf(err))
}

func TestCreate_withoutANode(t *testing.T) {
	s := coretest.New(t, nil)
	s.Node.Kill()
	coretest.Until(t, "a create is refused for want of a node", func() bool {
		_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
		return api.StatusOf(err) == 503 && api.AsError(err).ErrorCode == api.CodeCapacity
	})
}

func BenchmarkCreate_onFakeNode(b *testing.B) {
	s := coretest.New(b, nil)
	steps := map[string]int64{}
	n := 0
	for b.Loop() {
		_, took, err := s.Sandboxes.Create(b.Context(), coretest.Params())
		if err != nil {
			b.Fatal(err)
		}
		n++
		for _, st := range took {
			steps[st.Name] += st.Nanos
		}
	}
	for _, name := range []string{
		lifecycle.StepValidate, lifecycle.StepTemplate, lifecycle.StepIntent, lifecycle.StepPlace, lifecycle.StepReport, lifecycle.StepFact,
	} {
		b.ReportMetric(float64(steps[name])/float64(n)/1000, name+"-µs")
	}
}
