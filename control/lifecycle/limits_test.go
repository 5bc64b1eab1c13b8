package lifecycle_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestLimits_reachTheNodeAndStay(t *testing.T) {
	s := coretest.New(t, nil)
	p := coretest.Params()
	p.QoS, p.Limits = "guaranteed", state.Limits{PIDs: 100, DiskBytes: 64 << 20, IOWriteBytes: 1 << 20}
	sb, _, err := s.Sandboxes.Create(t.Context(), p)
	must.NoError(t, err)
	must.Eq(t, "guaranteed", s.Node.Running()[sb.ID].QoS)
	must.Eq(t, 64<<20, s.Node.Running()[sb.ID].Limits.DiskBytes)
	must.Eq(t, 64, sb.DiskMB)

	got, err := s.Sandboxes.SetLimits(t.Context(), sb.Tenant, sb.ID, lifecycle.LimitChange{
		MemoryMB: 256, Limits: state.Limits{PIDs: 200, IOWriteBytes: api.Unlimited},
	})
	must.NoError(t, err)
	at := s.Node.Running()[sb.ID].Limits
	must.Eq(t, nodeapi.Limits{CPUMillis: sb.CPUMillis, MemoryBytes: 256 << 20, PIDs: 200, DiskBytes: 64 << 20}, at)
	for _, now := range []state.Sandbox{got, must1(s.Sandboxes.Get(t.Context(), sb.Tenant, sb.ID))} {
		must.Eq(t, 256, now.MemoryMB)
		must.Eq(t, sb.CPUMillis, now.CPUMillis)
		must.Eq(t, at, lifecycle.NodeLimits(now))
		cpu, memory := now.Reserved()
		must.Eq(t, []int64{sb.CPUMillis, sb.MemoryMB}, []int64{cpu, memory}, must.Sprint("what it was placed with is not forgotten"))
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestLimits_refusals(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	for name, c := range map[string]struct {
		tenant string
		change lifecycle.LimitChange
		code   int
		say    string
	}{
		"nothing":        {sb.Tenant, lifecycle.LimitChange{}, 400, "no limit"},
		"little memory":  {sb.Tenant, lifecycle.LimitChange{MemoryMB: 1}, 400, "memoryMB"},
		"much processor": {sb.Tenant, lifecycle.LimitChange{CPUMillis: 1 << 40}, 400, "cpuMillis"},
		"few processes":  {sb.Tenant, lifecycle.LimitChange{Limits: state.Limits{PIDs: -1}}, 400, "pids"},
		"few inodes":     {sb.Tenant, lifecycle.LimitChange{Limits: state.Limits{DiskInodes: 1}}, 400, "diskInodes"},
		"slow io":        {sb.Tenant, lifecycle.LimitChange{Limits: state.Limits{IOReadBytes: 1}}, 400, "ioReadBytes"},
		"negative disk":  {sb.Tenant, lifecycle.LimitChange{Limits: state.Limits{DiskBytes: -1 << 20}}, 400, "diskMB"},
		"other tenant":   {"other", lifecycle.LimitChange{MemoryMB: 256}, 404, "does not exist"},
	} {
		_, err := s.Sandboxes.SetLimits(t.Context(), c.tenant, sb.ID, c.change)
		must.Eq(t, c.code, api.StatusOf(err), must.Sprint(name, err))
		must.StrContains(t, err.Error(), c.say)
	}
	must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	_, err := s.Sandboxes.SetLimits(t.Context(), sb.Tenant, sb.ID, lifecycle.LimitChange{MemoryMB: 256})
	must.Eq(t, 404, api.StatusOf(err))
}

func refuseLimits() fleettest.Hooks {
	return fleettest.Hooks{Call: func(method, path string) error {
		if method == http.MethodPut && strings.HasSuffix(path, "/limits") {
			return api.Errorf(http.StatusConflict, api.CodeConflict, "memory limit is below what is in use")
		}
		return nil
	}}
}

func TestLimits_nodeThatRefusesLeavesAllAsItWas(t *testing.T) {
	s := coretest.New(t, nil)
	sb := create(t, s)
	s.Node.SetHooks(refuseLimits())
	_, err := s.Sandboxes.SetLimits(t.Context(), sb.Tenant, sb.ID, lifecycle.LimitChange{MemoryMB: 64})
	must.Eq(t, 409, api.StatusOf(err))
	must.StrContains(t, err.Error(), "below what is in use")
	now := must1(s.Sandboxes.Get(t.Context(), sb.Tenant, sb.ID))
	must.Eq(t, sb.MemoryMB, now.MemoryMB)
	must.Eq(t, sb.ModifyIndex, now.ModifyIndex)
}
