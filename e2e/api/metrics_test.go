package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// A sandbox that works shows it in both shapes of the API.
func TestMetrics_ofALoadedSandbox(t *testing.T) {
	s := newStack(t)
	begin := time.Now()
	sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
	_, err = s.client.StartProcess(t.Context(), sb.ID, api.ExecRequest{Argv: []string{"/bin/bash", "-c", "head -c 5000000 /dev/zero > ~/file; while :; do :; done"}})
	must.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var samples []api.Sample
	for {
		samples, err = s.client.Metrics(ctx, sb.ID, begin, time.Time{})
		must.NoError(t, err)
		if n := len(samples); n > 2 && samples[n-1].CPUPercent > 5 && samples[n-1].DiskUsed >= 5_000_000 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	last := samples[len(samples)-1]
	must.GreaterEq(t, 2, last.Processes)
	must.Positive(t, last.MemoryBytes)

	one := get[[]api.SandboxMetric](t, s, fmt.Sprintf("/sandboxes/%s/metrics?start=%d&end=%d", sb.ID, begin.Unix(), time.Now().Unix()))
	must.SliceNotEmpty(t, one)
	many := get[api.SandboxesMetrics](t, s, "/sandboxes/metrics?sandbox_ids="+string(sb.ID))
	must.Eq(t, 1, len(many.Sandboxes))
	for _, m := range []api.SandboxMetric{one[len(one)-1], many.Sandboxes[sb.ID]} {
		must.GreaterEq(t, last.Time.Unix(), m.TimestampUnix)
		must.GreaterEq(t, 1, m.CPUCount)
		must.GreaterEq(t, 5_000_000, m.DiskUsed)
		must.Eq(t, last.MemoryTotal, m.MemTotal)
		must.Eq(t, last.DiskTotal, m.DiskTotal)
	}

	must.NoError(t, s.client.DeleteSandbox(t.Context(), sb.ID))
	_, err = s.client.Metrics(t.Context(), sb.ID, time.Time{}, time.Time{})
	must.Error(t, err)
}

// get asks for what the Go client has no method for.
func get[T any](t *testing.T, s *stack, path string) (out T) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.addr+path, nil)
	must.NoError(t, err)
	req.Header.Set("X-API-Key", s.key)
	resp, err := http.DefaultClient.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	must.NoError(t, json.NewDecoder(resp.Body).Decode(&out))
	return out
}
