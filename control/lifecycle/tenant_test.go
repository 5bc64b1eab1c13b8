package lifecycle_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/quota"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// ruled changes the record of the tests' tenant.
func ruled(t *testing.T, s *coretest.Server, change func(*state.Tenant)) {
	t.Helper()
	tenant, err := s.State.Tenant(state.DefaultTenant)
	must.NoError(t, err)
	index := tenant.ModifyIndex
	change(&tenant)
	_, err = s.State.Apply(t.Context(), &state.TenantPut{Tenant: tenant, Index: index})
	must.NoError(t, err)
}

func TestTenant_fillsWhatACreateDoesNotSay(t *testing.T) {
	s := coretest.New(t, nil)
	ruled(t, s, func(r *state.Tenant) {
		r.Defaults = state.TenantDefaults{CPUMillis: 250, MemoryMB: 64, DiskMB: 128, Timeout: 7 * time.Minute}
	})
	bare := func(p *lifecycle.CreateParams) { p.CPUMillis, p.MemoryMB, p.DiskMB, p.Timeout = 0, 0, 0, 0 }
	sb := running(t, s, bare)
	must.Eq(t, []int64{250, 64, 128}, []int64{sb.CPUMillis, sb.MemoryMB, sb.DiskMB})
	must.Eq(t, 7*time.Minute, sb.Timeout)
	must.Eq(t, 64<<20, s.Node.Running()[sb.ID].Limits.MemoryBytes)
	own := running(t, s, func(p *lifecycle.CreateParams) { bare(p); p.MemoryMB = 96 })
	must.Eq(t, []int64{250, 96}, []int64{own.CPUMillis, own.MemoryMB})
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	back, err := s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, 0, lifecycle.KeepMemory)
	must.NoError(t, err)
	must.Eq(t, 7*time.Minute, back.Timeout)
}

func second[T any](_ T, err error) error { return err }

func TestTenant_boundsWhatIsAskedFor(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	ruled(t, s, func(r *state.Tenant) {
		r.Maximums = state.TenantDefaults{CPUMillis: 2000, MemoryMB: 600, DiskMB: 2000, Timeout: 10 * time.Minute}
	})
	for say, change := range map[string]func(*lifecycle.CreateParams){
		"cpuMillis is 2001, sandboxes of tenant default may have at most 2000":       func(p *lifecycle.CreateParams) { p.CPUMillis = 2001 },
		"memoryMB is 601, sandboxes of tenant default may have at most 600":          func(p *lifecycle.CreateParams) { p.MemoryMB = 601 },
		"diskMB is 2001, sandboxes of tenant default may have at most 2000":          func(p *lifecycle.CreateParams) { p.Limits.DiskBytes = 2001 << 20 },
		"timeout is 601 seconds, sandboxes of tenant default may have at most 600":   func(p *lifecycle.CreateParams) { p.Timeout = 601 * time.Second },
		"timeout is 86400 seconds, sandboxes of tenant default may have at most 600": func(p *lifecycle.CreateParams) { p.Timeout = 24 * time.Hour },
	} {
		p := coretest.Params()
		change(&p)
		_, _, err := s.Sandboxes.Create(t.Context(), p)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(say))
		must.StrContains(t, err.Error(), say)
	}
	_, err := s.Sandboxes.SetTimeout(t.Context(), sb.Tenant, sb.ID, time.Hour)
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	_, err = s.Sandboxes.SetLimits(t.Context(), sb.Tenant, sb.ID, lifecycle.LimitChange{MemoryMB: 601})
	must.ErrorContains(t, err, "memoryMB is 601")
	_, err = s.Sandboxes.Fork(t.Context(), coretest.Caller, sb.ID, 1, time.Hour)
	must.ErrorContains(t, err, "timeout is 3600 seconds")
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	_, err = s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Hour, lifecycle.KeepMemory)
	must.ErrorContains(t, err, "timeout is 3600 seconds")

	_, err = s.State.Apply(t.Context(), &state.TenantPut{Tenant: state.Tenant{
		ID: "acme", Defaults: state.TenantDefaults{MemoryMB: 65}, Maximums: state.TenantDefaults{MemoryMB: 64},
	}})
	must.ErrorContains(t, err, "defaults.memory_mb is more than maximums.memory_mb")
}

// What nothing can keep apart is refused before anything is made, and named.
func TestTenant_isolationThatCannotBeHadIsRefused(t *testing.T) {
	s := coretest.New(t, nil)
	ruled(t, s, func(r *state.Tenant) { r.Isolation = state.TenantIsolation{Compute: state.Dedicated} })
	_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.Eq(t, http.StatusNotImplemented, api.StatusOf(err))
	must.StrContains(t, err.Error(), "isolation.compute of tenant default is dedicated")
	must.MapEmpty(t, s.Node.Running())
	ruled(t, s, func(r *state.Tenant) { r.Isolation = state.TenantIsolation{Network: state.Dedicated} })
	running(t, s, nil) // every sandbox has a network of its own
}

func TestTenant_dedicatedStorageIsTheNodesToMakeAndForgotWithTheTenant(t *testing.T) {
	s := coretest.New(t, nil)
	shared := running(t, s, nil)
	must.Eq(t, "", s.Node.Running()[shared.ID].TemplateOf)
	ruled(t, s, func(r *state.Tenant) { r.Isolation = state.TenantIsolation{Storage: state.Dedicated} })
	sb := running(t, s, nil)
	must.Eq(t, state.DefaultTenant, s.Node.Running()[sb.ID].TemplateOf)
	must.Eq(t, []nodeapi.OwnTemplate{{Tenant: state.DefaultTenant, Digest: sb.Digest}}, s.Node.OwnTemplates())
	s.Node.DisownTemplates() // it does what a node does that does not know of them
	_, _, err := s.Sandboxes.Create(t.Context(), coretest.Params())
	must.ErrorContains(t, err, `made it of a template of "", not of "default"`)
	coretest.Until(t, "which is not left", func() bool { return len(s.Node.Running()) == 2 })

	s.Node.OwnTemplate(nodeapi.OwnTemplate{Tenant: "gone", Digest: sb.Digest})
	coretest.Until(t, "the copies of a tenant that is gone go", func() bool {
		s.Templates.ForgetOwn(t.Context())
		return slices.Equal(s.Node.OwnTemplates(), []nodeapi.OwnTemplate{{Tenant: state.DefaultTenant, Digest: sb.Digest}})
	})
	ruled(t, s, func(r *state.Tenant) { r.Isolation = state.TenantIsolation{} })
	coretest.Until(t, "and those of one that shares again", func() bool {
		s.Templates.ForgetOwn(t.Context())
		return len(s.Node.OwnTemplates()) == 0
	})
}

func TestTenant_suspendedOnesSleepOn(t *testing.T) {
	s := coretest.New(t, nil)
	awake := running(t, s, nil)
	asleep := running(t, s, func(p *lifecycle.CreateParams) { p.Lifecycle.AutoResume = true })
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), asleep.Tenant, asleep.ID, lifecycle.KeepMemory)))
	ruled(t, s, func(r *state.Tenant) { r.Suspended = true })
	_, err := s.Sandboxes.Wake(t.Context(), asleep.ID)
	must.Eq(t, http.StatusForbidden, api.StatusOf(err), must.Sprint("traffic wakes nobody"))
	must.Eq(t, api.CodeSuspended, api.CodeOf(err))
	_, err = s.Sandboxes.Resume(t.Context(), asleep.Tenant, asleep.ID, time.Minute, lifecycle.KeepMemory)
	must.Eq(t, api.CodeSuspended, api.CodeOf(err))
	_, _, err = s.Sandboxes.Create(t.Context(), coretest.Params())
	must.Error(t, err)
	must.MapContainsKey(t, s.Node.Running(), awake.ID, must.Sprint("what runs goes on"))
	must.NoError(t, s.Sandboxes.Delete(t.Context(), awake.Tenant, awake.ID))
	ruled(t, s, func(r *state.Tenant) { r.Suspended = false })
	must.NoError(t, second(s.Sandboxes.Wake(t.Context(), asleep.ID)))
}

func TestResume_keepsToTheQuota(t *testing.T) {
	s := coretest.New(t, nil)
	const n = 5
	var asleep []state.Sandbox
	for range n {
		sb := running(t, s, nil)
		must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
		asleep = append(asleep, sb)
	}
	runs := running(t, s, nil)
	must.NoError(t, s.Quotas().Set(t.Context(), state.DefaultTenant, map[string]int64{api.QuotaConcurrent: 2}, "test"))
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i, sb := range asleep {
		wg.Go(func() {
			_, errs[i] = s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)
		})
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
			continue
		}
		must.Eq(t, http.StatusTooManyRequests, api.StatusOf(err))
		must.ErrorContains(t, err, "concurrent_sandboxes")
	}
	must.Eq(t, 1, good, must.Sprint("one is running, and there is room for one more"))
	use, err := s.State.Usage(state.DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, 2, use[state.LimitConcurrent])
	must.NoError(t, s.Sandboxes.Delete(t.Context(), runs.Tenant, runs.ID))
	for i, sb := range asleep {
		if errs[i] != nil {
			must.NoError(t, second(s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)), must.Sprint("a refusal holds nothing"))
			break
		}
	}
}

// Two servers on the same tables: which of them a resume is asked of makes no difference to what is left. This one's counts of what is on its way
// are its own, so it is the tables that decide.
func TestResume_keepsToTheQuotaWhicheverServerIsAsked(t *testing.T) {
	var configs []lifecycle.Config
	s := coretest.New(t, func(s *coretest.Server) {
		s.Config.Sandboxes = func(c *lifecycle.Config) { configs = append(configs, *c) }
	})
	var servers []*lifecycle.Service
	for i := range 4 {
		c := configs[0]
		c.Run, c.Quota = fmt.Sprint("server ", i), quota.New(nil) // which knows no limits, as that of a server whose tables lag
		l, err := lifecycle.New(c)
		must.NoError(t, err)
		servers = append(servers, l)
	}
	const n = 12
	var asleep []state.Sandbox
	for range n {
		sb := running(t, s, nil)
		must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
		asleep = append(asleep, sb)
	}
	running(t, s, nil)
	must.NoError(t, s.Quotas().Set(t.Context(), state.DefaultTenant, map[string]int64{api.QuotaConcurrent: 2}, "test"))
	var most atomic.Int64
	s.Node.SetHooks(fleettest.Hooks{Call: func(_, path string) error {
		if strings.HasSuffix(path, "/resume") {
			most.Add(1)
		}
		return nil
	}})
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, sb := range asleep {
		wg.Go(func() {
			_, errs[i] = servers[i%len(servers)].Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)
		})
	}
	wg.Wait()
	good := 0
	for _, err := range errs {
		if err == nil {
			good++
			continue
		}
		must.Eq(t, http.StatusTooManyRequests, api.StatusOf(err))
		must.ErrorContains(t, err, "concurrent_sandboxes: 2 of 2 are in use, 1 more are asked for")
	}
	must.Eq(t, 1, good)
	must.Eq(t, 1, most.Load(), must.Sprint("no node was asked for the others"))
	must.Eq(t, 2, used(t, s, state.LimitConcurrent))
}

// A service that dies, or loses the lead, between what it holds and the node's answer leaves nothing held.
func TestHold_ofAServiceThatDiedIsGivenBack(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, linked(10, 10))
	asleep := running(t, s, nil)
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), asleep.Tenant, asleep.ID, lifecycle.KeepMemory)))
	dead := func(h state.Hold) state.Hold {
		h.Run, h.At = "one that died", time.Now()
		return h
	}
	for id, h := range map[api.SandboxID]state.Hold{
		sb.ID: dead(state.Hold{RateIn: 90 * state.Mbit, MemoryMB: 4096}), asleep.ID: dead(state.Hold{Active: true}),
	} {
		_, err := s.State.Apply(t.Context(), &state.SandboxHold{ID: id, Hold: h})
		must.NoError(t, err)
	}
	s.Node.Reshape(sb.ID, api.NetworkShape{In: api.NetworkDirection{Rate: 90 * state.Mbit}}) // so far it had come
	coretest.Until(t, "the holds end", func() bool {
		return used(t, s, state.LimitBandwidthIn) == 10 && used(t, s, state.LimitConcurrent) == 1
	})
	must.Eq(t, [2]uint64{10, 10}, rates(s, sb.ID), must.Sprint("and the node has what is recorded"))
	must.Eq(t, sb.MemoryMB, used(t, s, state.LimitMemory))
}
