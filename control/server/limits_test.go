package server

import (
	"net/http"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestLimits_passesOnWhatIsGiven(t *testing.T) {
	h := newHarness(t)
	sb := sandbox(testID)
	sb.QoS, sb.Limits = api.QoSGuaranteed, state.Limits{PIDs: 256, DiskBytes: 2 << 30, IOWriteOps: 100}
	h.life.sandboxes[testID] = sb
	got, err := h.client().SetLimits(t.Context(), testID, api.LimitsRequest{
		CPU: ptr(0.25), MemoryMB: ptr[int64](1024), DiskMB: ptr[int64](2048), PIDs: ptr[int64](256),
		StorageLimits: api.StorageLimits{
			DiskInodes: ptr[int64](5000), IOReadBytes: ptr[int64](1 << 20), IOWriteBytes: ptr[int64](api.Unlimited), IOReadOps: ptr[int64](50), IOWriteOps: ptr[int64](100),
		},
	})
	must.NoError(t, err)
	must.Eq(t, []lifecycle.LimitChange{{CPUMillis: 250, MemoryMB: 1024, Limits: state.Limits{
		PIDs: 256, DiskBytes: 2 << 30, DiskInodes: 5000, IOReadBytes: 1 << 20, IOWriteBytes: -1, IOReadOps: 50, IOWriteOps: 100,
	}}}, h.life.limits)
	must.Eq(t, "guaranteed", got.QoS)
	must.Eq(t, 2048, got.DiskMB)
	must.Eq(t, 256, got.PIDs)
	must.Eq(t, 100, got.IOWriteOps)
}

func TestLimits_refusesBadFields(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	for name, tc := range map[string]struct{ body, field string }{
		"nothing":     {`{}`, "no limit"},
		"both cpus":   {`{"cpu":1,"cpu_millis":1}`, "cpu"},
		"memory 0":    {`{"memory_mb":0}`, "memory_mb"},
		"disk lifted": {`{"disk_mb":-1}`, "disk_mb"},
		"pids lifted": {`{"pids":-1}`, "pids"},
		"io negative": {`{"io_read_ops":-2}`, "io_read_ops"},
		"io zero":     {`{"io_write_bytes":0}`, "io_write_bytes"},
		"io 2^63":     {`{"io_write_bytes":9223372036854775808}`, "io_write_bytes"},
		"what stays":  {`{"qos":"guaranteed"}`, "no limit"},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.do(http.MethodPut, "/v1/sandboxes/"+string(testID)+"/limits", tc.body)
			must.Eq(t, 400, a.status, must.Sprint(a.body))
			must.StrContains(t, a.body, tc.field)
		})
	}
	must.SliceEmpty(t, h.life.limits)
	must.Eq(t, 400, h.do(http.MethodPost, "/v2/sandboxes", `{"templateID":"b","soulbox":{"io_read_ops":-1}}`).status, must.Sprint("a create has nothing to lift"))
}
