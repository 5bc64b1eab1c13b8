package lifecycle_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

func limited(t *testing.T, s *coretest.Server, limits map[string]int64) {
	t.Helper()
	must.NoError(t, s.Quotas().Set(t.Context(), state.DefaultTenant, limits, "test"))
}

func used(t *testing.T, s *coretest.Server, l state.Limit) int64 {
	t.Helper()
	use, err := s.State.Usage(state.DefaultTenant)
	must.NoError(t, err)
	return use[l]
}

// linked asks for a sandbox whose link has rates, in Mbit/s.
func linked(in, out uint64) func(*lifecycle.CreateParams) {
	return func(p *lifecycle.CreateParams) {
		b, err := json.Marshal(api.NetworkConfig{SoulBox: &api.NetworkOptions{Shape: &api.NetworkShape{
			In: api.NetworkDirection{Rate: in * state.Mbit}, Out: api.NetworkDirection{Rate: out * state.Mbit},
		}}})
		if err != nil {
			panic(err)
		}
		p.Network = b
	}
}

func rates(s *coretest.Server, id api.SandboxID) [2]uint64 {
	n := s.Node.Network(id)
	if n == nil || n.Shape == nil {
		return [2]uint64{}
	}
	return [2]uint64{n.Shape.In.Rate / state.Mbit, n.Shape.Out.Rate / state.Mbit}
}

func TestBandwidth_isATenantsToHaveAndReachesTheNode(t *testing.T) {
	s := coretest.New(t, nil)
	limited(t, s, map[string]int64{api.QuotaBandwidthIn: 100})
	p := coretest.Params()
	_, _, err := s.Sandboxes.Create(t.Context(), p)
	must.Eq(t, http.StatusTooManyRequests, api.StatusOf(err))
	must.ErrorContains(t, err, "bandwidth_in_mbit: 0 of 100 are in use, and a sandbox without a rate asks for all")

	ruled(t, s, func(r *state.Tenant) {
		r.Defaults.BandwidthIn, r.Maximums.BandwidthIn, r.Maximums.BandwidthOut = 30, 60, 10
	})
	sb := running(t, s, nil)
	must.Eq(t, [2]uint64{30, 10}, rates(s, sb.ID), must.Sprint("the default, and where there is none the most"))
	must.Eq(t, 30, used(t, s, state.LimitBandwidthIn))
	must.Eq(t, 10, used(t, s, state.LimitBandwidthOut))

	linked(61, 0)(&p)
	_, _, err = s.Sandboxes.Create(t.Context(), p)
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
	must.ErrorContains(t, err, "network.shape.in: rate_bytes is 7625000, sandboxes of tenant default may have at most 7500000 (60 Mbit/s)")
	own := running(t, s, linked(60, 5))
	must.Eq(t, [2]uint64{60, 5}, rates(s, own.ID))
	linked(11, 1)(&p)
	_, _, err = s.Sandboxes.Create(t.Context(), p)
	must.ErrorContains(t, err, "bandwidth_in_mbit: 90 of 100 are in use, 11 more are asked for")

	// Live: the link gets no more than there is, and what it gives back is there at once.
	shape := func(in uint64) error {
		return s.Sandboxes.ShapeNetwork(t.Context(), own.Tenant, own.ID, api.NetworkShape{In: api.NetworkDirection{Rate: in * state.Mbit}})
	}
	must.NoError(t, shape(20))
	must.Eq(t, [2]uint64{20, 10}, rates(s, own.ID))
	must.Eq(t, 50, used(t, s, state.LimitBandwidthIn))
	other := running(t, s, linked(45, 1))
	err = shape(26)
	must.Eq(t, http.StatusTooManyRequests, api.StatusOf(err))
	must.ErrorContains(t, err, "bandwidth_in_mbit: 95 of 100 are in use, 6 more are asked for")
	must.Eq(t, [2]uint64{20, 10}, rates(s, own.ID))
	must.NoError(t, shape(25))
	must.Eq(t, 100, used(t, s, state.LimitBandwidthIn))

	// A node that cannot leaves what was.
	s.Node.SetHooks(fleettest.Hooks{Call: func(method, path string) error {
		if method == http.MethodPut && strings.HasSuffix(path, "/network") {
			return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "no sch_tbf here")
		}
		return nil
	}})
	must.NoError(t, s.Sandboxes.Delete(t.Context(), other.Tenant, other.ID))
	err = shape(60)
	must.Eq(t, http.StatusNotImplemented, api.StatusOf(err))
	must.Eq(t, 55, used(t, s, state.LimitBandwidthIn))
	s.Node.SetHooks(fleettest.Hooks{})

	// Use is what it was after a restart.
	s.Stop()
	s.Start(t)
	must.Eq(t, 55, used(t, s, state.LimitBandwidthIn))
	must.NoError(t, s.Sandboxes.Delete(t.Context(), own.Tenant, own.ID))
	must.NoError(t, s.Sandboxes.Delete(t.Context(), sb.Tenant, sb.ID))
	must.Eq(t, 0, used(t, s, state.LimitBandwidthIn))
}

func TestBandwidth_ofAPausedSandboxIsAskedForAgain(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	limited(t, s, map[string]int64{api.QuotaBandwidthOut: 10})
	_, err := s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)
	must.ErrorContains(t, err, "bandwidth_out_mbit: 0 of 10 are in use, and a sandbox without a rate asks for all")
	must.Eq(t, 0, s.Node.Resumed(sb.ID))
	ruled(t, s, func(r *state.Tenant) { r.Defaults.BandwidthOut = 4 })
	must.NoError(t, second(s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)))
	must.Eq(t, [2]uint64{0, 4}, rates(s, sb.ID))
	must.Eq(t, 4, used(t, s, state.LimitBandwidthOut))
}

func TestShape_refusesRatesThatNoLinkHas(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, nil)
	for _, rate := range []uint64{1, minRate - 1, 1 << 32, 1<<64 - 1} {
		err := s.Sandboxes.ShapeNetwork(t.Context(), sb.Tenant, sb.ID, api.NetworkShape{Out: api.NetworkDirection{Rate: rate}})
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
		must.ErrorContains(t, err, "network.shape.out: rate_bytes is")
	}
	for _, bad := range []state.TenantDefaults{{BandwidthIn: -1}, {BandwidthOut: state.MaxBandwidth + 1}} {
		_, err := s.State.Apply(t.Context(), &state.TenantPut{Tenant: state.Tenant{ID: "acme", Maximums: bad}})
		must.ErrorContains(t, err, "maximums.bandwidth_")
	}
}

const minRate = 8 << 10

// A policy that is set while a sandbox is paused holds from its first packet on.
func TestNetwork_setWhilePausedHoldsWhenResumed(t *testing.T) {
	s := coretest.New(t, nil)
	sb := running(t, s, func(p *lifecycle.CreateParams) { p.Network = json.RawMessage(`{"allowOut":["1.1.1.1"]}`) })
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	must.NoError(t, second(s.Sandboxes.SetNetwork(t.Context(), sb.Tenant, sb.ID, api.NetworkConfig{DenyOut: []string{"0.0.0.0/0"}}, nil)))
	must.NoError(t, second(s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)))
	must.Eq(t, []string{"0.0.0.0/0"}, s.Node.Network(sb.ID).Layers[0].Deny)
	must.NoError(t, second(s.Sandboxes.Pause(t.Context(), sb.Tenant, sb.ID, lifecycle.KeepMemory)))
	must.NoError(t, second(s.Sandboxes.SetNetwork(t.Context(), sb.Tenant, sb.ID, api.NetworkConfig{}, nil)))
	must.NoError(t, second(s.Sandboxes.Resume(t.Context(), sb.Tenant, sb.ID, time.Minute, lifecycle.KeepMemory)))
	must.SliceEmpty(t, s.Node.Network(sb.ID).Layers, must.Sprint("a policy that was lifted meanwhile is lifted"))
}
