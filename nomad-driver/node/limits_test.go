package node

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

const mib = 1 << 20

func TestSetLimits_changesWhatIsGivenAndTellsOfIt(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	before, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	sb, err := n.client.SetLimits(t.Context(), req.ID, nodeapi.Limits{MemoryBytes: 128 * mib, IOWriteBytes: mib})
	must.NoError(t, err)
	want := before.Limits
	want.MemoryBytes, want.IOWriteBytes = 128*mib, mib
	must.Eq(t, want, sb.Limits)
	must.Eq(t, []sandbox.Limits{{MemoryBytes: 128 * mib, IOWriteBytes: mib}}, n.rt.instance(req.ID).limits)
	sb, err = n.client.SetLimits(t.Context(), req.ID, nodeapi.Limits{IOWriteBytes: -1})
	must.NoError(t, err)
	must.Eq(t, 0, sb.Limits.IOWriteBytes)
	got, err := n.client.Get(t.Context(), req.ID)
	must.NoError(t, err)
	must.Eq(t, sb.Limits, got.Limits)
}

func TestSetLimits_thatFailsLeavesThemAsTheyWere(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	before, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	inst := n.rt.instance(req.ID)
	inst.limitErr = fmt.Errorf("memory: %w", cgroup.ErrBelowUse)
	_, err = n.client.SetLimits(t.Context(), req.ID, nodeapi.Limits{MemoryBytes: 64 * mib, IOReadOps: 100})
	must.Eq(t, http.StatusConflict, api.StatusOf(err))
	must.ErrorContains(t, err, "in use")
	must.Eq(t, []sandbox.Limits{
		{MemoryBytes: 64 * mib, IOReadOps: 100}, {MemoryBytes: before.Limits.MemoryBytes, IOReadOps: cgroup.Unlimited},
	}, inst.limits)
	after, err := n.client.Get(t.Context(), req.ID)
	must.NoError(t, err)
	must.Eq(t, before.Limits, after.Limits)
}

func TestSetLimits_badRequests(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	req := createRequest()
	_, err := n.client.Create(t.Context(), req)
	must.NoError(t, err)
	for _, tt := range []struct {
		limits nodeapi.Limits
		want   string
	}{
		{nodeapi.Limits{}, "none is given"},
		{nodeapi.Limits{PIDs: 1}, "limits.pids"},
		{nodeapi.Limits{MemoryBytes: -1}, "limits.memory_bytes"},
		{nodeapi.Limits{CPUMillis: 1 << 40}, "limits.cpu_millis"},
		{nodeapi.Limits{NoFile: 100}, "limits.nofile"},
		{nodeapi.Limits{TmpBytes: mib}, "limits.tmp_bytes"},
		{nodeapi.Limits{IOReadBytes: -2}, "limits.io_read_bytes"},
		{nodeapi.Limits{DiskBytes: 1}, "limits.disk_bytes"},
	} {
		_, err := n.client.SetLimits(t.Context(), req.ID, tt.limits)
		must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprint(tt.want))
		must.ErrorContains(t, err, tt.want)
	}
	_, err = n.client.SetLimits(t.Context(), api.NewSandboxID(), nodeapi.Limits{PIDs: 100})
	must.True(t, api.IsNotFound(err))
}

func TestQoS_decidesTheWeight(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	for qos, weight := range map[string]int64{"": 100, "guaranteed": 400, "burstable": 100, "best_effort": 10} {
		req := createRequest()
		req.QoS = qos
		sb, err := n.client.Create(t.Context(), req)
		must.NoError(t, err)
		must.Eq(t, weight, sb.Limits.CPUWeight)
		if qos == "" {
			qos = "burstable"
		}
		must.Eq(t, qos, sb.QoS)
		must.Eq(t, sandbox.QoS(qos), n.rt.instance(req.ID).config.QoS)
	}
	req := createRequest()
	req.QoS = "vip"
	_, err := n.client.Create(t.Context(), req)
	must.Eq(t, http.StatusBadRequest, api.StatusOf(err))
}

func TestDiskLimit_policyWhereThereIsNone(t *testing.T) {
	for _, tt := range []struct {
		policy string
		ok     bool
	}{{"", false}, {DiskLimitRefuse, false}, {DiskLimitBestEffort, true}} {
		cfg := testConfig(shortDir(t))
		cfg.DiskLimiter, cfg.DiskLimitPolicy = "none", tt.policy
		n := startNode(t, cfg, nil)
		req := createRequest()
		_, err := n.client.Create(t.Context(), req)
		must.NoError(t, err, must.Sprint("asks for none"))
		req = createRequest()
		req.Limits.DiskBytes = 64 * mib
		sb, err := n.client.Create(t.Context(), req)
		if tt.ok {
			must.NoError(t, err)
			must.Eq(t, 0, sb.Limits.DiskBytes)
			continue
		}
		must.Eq(t, http.StatusNotImplemented, api.StatusOf(err))
		must.ErrorContains(t, err, "disk_limiter is none")
	}
}

func TestConfig_diskLimitsThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.DiskLimiter = "floppy" }, "floppy"},
		{func(c *Config) { c.DiskLimitPolicy = "maybe" }, "maybe"},
		{func(c *Config) { c.DiskLimiter = "none"; c.Defaults.DiskBytes = 64 * mib }, "disk_limiter is none"},
	} {
		cfg := testConfig(shortDir(t))
		cfg.runtime, cfg.templates = newFakeRuntime(), &fakeTemplates{}
		tt.change(&cfg)
		_, err := New(cfg)
		must.ErrorContains(t, err, tt.want)
	}
}

// TestReal_limits asks a real daemon for a bounded disk and changes what may change.
func TestReal_limits(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Limits.DiskBytes, r.QoS = 32*mib, "best_effort" })
	must.Eq(t, 32*mib, sb.Limits.DiskBytes)
	out, _ := d.exec(sb, "bash", "-c", "head -c 100000000 /dev/zero 2>&1 > ~/f; stat -c %s ~/f")
	must.True(t, strings.Contains(out, "o space left") || strings.Contains(out, "uota"), must.Sprint(out))
	st, err := d.client.Stats(t.Context(), sb.ID)
	must.NoError(t, err)
	must.SliceContains(t, st.Measured, "disk_limit_bytes")
	must.Between(t, 16*mib, st.DiskBytes, 32*mib)
	_, err = d.client.SetLimits(t.Context(), sb.ID, nodeapi.Limits{PIDs: 64, MemoryBytes: 96 * mib, CPUMillis: 300})
	must.NoError(t, err)
	st, err = d.client.Stats(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, 96*mib, st.MemoryLimit)
	d.kill()
	d.start()
	again, err := d.client.Get(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, 64, again.Limits.PIDs)
	st, err = d.client.Stats(t.Context(), sb.ID)
	must.NoError(t, err)
	must.SliceContains(t, st.Measured, "disk_limit_bytes")
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	d.noLeftovers()
}
