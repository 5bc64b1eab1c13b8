package server

import (
	"context"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// sandboxMetrics is GET /v1/sandboxes/{id}/metrics.
func (s *Server) sandboxMetrics(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	start, end := q.time("start"), q.time("end")
	if q.err != nil {
		return q.err
	}
	node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	samples, err := node.Samples(r.Context(), id, start, end)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, samples)
	return nil
}

// e2bMetrics is GET /sandboxes/{id}/metrics. Its times are seconds, of which the last is included to its end.
func (s *Server) e2bMetrics(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	start, end := q.seconds("start"), q.seconds("end")
	if q.err != nil {
		return q.err
	}
	if !end.IsZero() {
		if end.Before(start) {
			return invalid("parameter end is before start")
		}
		end = end.Add(time.Second - 1)
	}
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	if !e2bVisible(sb.State) {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s is %s", id, sb.State)
	}
	out := []api.SandboxMetric{}
	if sb.State == state.Running {
		node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
		if err != nil {
			return err
		}
		samples, err := node.Samples(r.Context(), id, start, end)
		if err != nil {
			return err
		}
		for _, one := range samples {
			out = append(out, e2bMetric(one))
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bMetricsOfMany is GET /sandboxes/metrics: the newest of each. Sandboxes that the caller does not have, that do not run, or
// whose node does not answer are left out.
func (s *Server) e2bMetricsOfMany(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	ids := q.sandboxIDs("sandbox_ids", api.MaxMetricsSandboxes)
	if q.err != nil {
		return q.err
	}
	byNode := map[*nodeapi.Client][]api.SandboxID{}
	for _, id := range ids {
		if s.mustMaySandbox(r, id) != nil {
			continue
		}
		if node, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id); err == nil {
			byNode[node] = append(byNode[node], id)
		}
	}
	out := api.SandboxesMetrics{Sandboxes: map[api.SandboxID]api.SandboxMetric{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for node, ids := range byNode {
		wg.Go(func() {
			latest := s.latest(r.Context(), node, ids)
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids { // what a node says of others is not believed
				if one, ok := latest[id]; ok {
					out.Sandboxes[id] = e2bMetric(one)
				}
			}
		})
	}
	wg.Wait()
	writeJSON(w, http.StatusOK, out)
	return nil
}

// latestTimeout is how long one node may keep the figures of the others waiting.
const latestTimeout = 5 * time.Second

func (s *Server) latest(ctx context.Context, node *nodeapi.Client, ids []api.SandboxID) map[api.SandboxID]api.Sample {
	ctx, cancel := context.WithTimeout(ctx, latestTimeout)
	defer cancel()
	latest, err := node.Latest(ctx, ids)
	if err != nil {
		s.log.Warn("a node does not tell what its sandboxes use", "node", node.Address(), "error", err)
	}
	return latest
}

// e2bMetric is a sample in the contract's words. A part of a processor counts as a whole one there, and its percentage is of
// all that the sandbox may use.
func e2bMetric(s api.Sample) api.SandboxMetric {
	m := api.SandboxMetric{
		Timestamp: s.Time.UTC(), TimestampUnix: s.Time.Unix(), CPUCount: int((s.CPUMillis + 999) / 1000),
		MemUsed: s.MemoryBytes, MemTotal: s.MemoryTotal, MemCache: s.MemoryCache, DiskUsed: s.DiskUsed, DiskTotal: s.DiskTotal,
	}
	if s.CPUMillis > 0 {
		m.CPUUsedPct = math.Round(s.CPUPercent*1000/float64(s.CPUMillis)*100) / 100
	}
	return m
}

// seconds returns a time in whole seconds since 1970, or the zero time where it is missing.
func (q *query) seconds(name string) time.Time {
	const year9999 = 253_402_300_799
	if _, ok := q.values[name]; !ok {
		return time.Time{}
	}
	return time.Unix(q.integer(name, 0, 0, year9999), 0)
}

// sandboxIDs returns a list separated by commas, each once. It must not be empty.
func (q *query) sandboxIDs(name string, limit int) []api.SandboxID {
	text := q.str(name, maxQueryBytes)
	if text == "" {
		q.fail(invalid("parameter %s is missing", name))
		return nil
	}
	words := strings.Split(text, ",")
	if len(words) > limit {
		q.fail(invalid("parameter %s has %d sandboxes, at most %d are answered at once", name, len(words), limit))
		return nil
	}
	seen := make(map[api.SandboxID]bool, len(words))
	var ids []api.SandboxID
	for _, word := range words {
		id, err := api.ParseSandboxID(word)
		if err != nil {
			q.fail(invalid("parameter %s: %s", name, err))
			return nil
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}
