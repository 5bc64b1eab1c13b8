package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// metric is testSample in the contract's words.
var metric = map[string]any{
	"timestamp": "2026-11-23T20:00:00.5Z", "timestampUnix": float64(testTime.Unix()), "cpuCount": 2.0, "cpuUsedPct": 20.0,
	"memUsed": 2.0, "memTotal": 4.0, "memCache": 3.0, "diskUsed": 7.0, "diskTotal": 8.0,
}

func TestE2BMetrics_hasExactlyTheContractsFields(t *testing.T) {
	h, f := withNode(t)
	a := h.do("GET", "/sandboxes/"+string(testID)+"/metrics?start=1700000000&end=1700000000", "")
	must.Eq(t, http.StatusOK, a.status)
	wrapped := answer{body: `{"list":` + a.body + `}`}
	must.Eq(t, any([]any{metric, metric}), wrapped.object(t)["list"])
	f.mu.Lock()
	defer f.mu.Unlock()
	must.SliceContains(t, f.seen, "GET /v1/sandboxes/"+string(testID)+"/metrics?end=2023-11-14T22%3A13%3A20.999999999Z&start=2023-11-14T22%3A13%3A20Z")
}

func TestE2BMetrics_ofWhatDoesNotRun(t *testing.T) {
	h, _ := withNode(t)
	sb := sandbox(testID)
	for st, want := range map[state.SandboxState]int{state.Paused: 200, state.Stopped: 404, state.Starting: 404} {
		sb.State = st
		h.life.sandboxes[testID] = sb
		a := h.do("GET", "/sandboxes/"+string(testID)+"/metrics", "")
		must.Eq(t, want, a.status)
		if want == 200 {
			must.Eq(t, "[]", strings.TrimSpace(a.body))
		}
	}
	h.do("GET", "/sandboxes/"+string(otherID)+"/metrics", "").mustFail(t, 404, api.CodeNotFound)
	h.do("GET", "/sandboxes/"+string(testID)+"/metrics", "", "X-API-Key", keyB).mustFail(t, 404, api.CodeNotFound)
}

func TestE2BMetrics_badParameters(t *testing.T) {
	h, _ := withNode(t)
	many := strings.TrimSuffix(strings.Repeat(string(testID)+",", api.MaxMetricsSandboxes+1), ",")
	for path, want := range map[string]string{
		"/sandboxes/" + string(testID) + "/metrics?start=x":                  "start",
		"/sandboxes/" + string(testID) + "/metrics?end=-1":                   "end",
		"/sandboxes/" + string(testID) + "/metrics?start=5&end=4":            "before start",
		"/sandboxes/" + string(testID) + "/metrics?start=5&start=6":          "start",
		"/sandboxes/" + string(testID) + "/metrics?end=99999999999999999999": "end",
		"/sandboxes/metrics": "sandbox_ids",
		"/sandboxes/metrics?sandbox_ids=" + string(testID) + ",": "sandbox_ids",
		"/sandboxes/metrics?sandbox_ids=../x":                    "sandbox_ids",
		"/sandboxes/metrics?sandbox_ids=" + many:                 "at most 100",
		"/v1/sandboxes/" + string(testID) + "/metrics?start=5":   "start",
	} {
		msg := h.do("GET", path, "").mustFail(t, 400, api.CodeInvalid)
		must.StrContains(t, msg, want)
	}
}

func TestE2BMetricsOfMany_showsTheCallersOwn(t *testing.T) {
	h, f := withNode(t)
	theirs := sandbox(otherID)
	theirs.Tenant = "b"
	h.life.sandboxes[otherID] = theirs
	a := h.do("GET", "/sandboxes/metrics?sandbox_ids="+string(testID)+","+string(otherID)+","+string(testID), "")
	must.Eq(t, http.StatusOK, a.status)
	must.Eq(t, map[string]any{"sandboxes": map[string]any{string(testID): metric}}, a.object(t))
	f.mu.Lock()
	must.SliceContains(t, f.seen, "GET /v1/metrics/latest?ids="+string(testID))
	f.mu.Unlock()

	a = h.do("GET", "/sandboxes/metrics?sandbox_ids="+string(otherID), "")
	must.Eq(t, http.StatusOK, a.status)
	must.Eq(t, map[string]any{"sandboxes": map[string]any{}}, a.object(t))
}

func TestSandboxMetrics_throughTheClient(t *testing.T) {
	h, f := withNode(t)
	samples, err := h.client().Metrics(t.Context(), testID, testTime, time.Time{})
	must.NoError(t, err)
	must.Eq(t, []api.Sample{testSample(), testSample()}, samples)
	f.mu.Lock()
	defer f.mu.Unlock()
	must.SliceContains(t, f.seen, "GET /v1/sandboxes/"+string(testID)+"/metrics?start=2026-11-23T20%3A00%3A00Z")
}
