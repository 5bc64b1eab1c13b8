package server

import (
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// A tenant's history is not kept, it follows from its sandboxes' records: it goes as far back as those of ended ones do.
const (
	teamWindow    = time.Hour // where no start is given
	maxTeamWindow = 31 * 24 * time.Hour
	teamPoints    = 240 // of one answer
	minTeamStep   = 5 * time.Second
)

// teamRange reads whose history is asked for, and of when.
func (s *Server) teamRange(r *http.Request) (kept []state.Sandbox, q *query, start, end time.Time, err error) {
	if err := ownTeam(r); err != nil {
		return nil, nil, start, end, err
	}
	if q, err = parseQuery(r); err != nil {
		return nil, nil, start, end, err
	}
	start, end = q.seconds("start"), q.seconds("end")
	if end.IsZero() {
		end = time.Now().UTC()
	}
	if start.IsZero() {
		start = end.Add(-teamWindow)
	}
	switch {
	case q.err != nil:
		return nil, nil, start, end, q.err
	case end.Before(start):
		return nil, nil, start, end, invalid("parameter end is before start")
	case end.Sub(start) > maxTeamWindow:
		return nil, nil, start, end, invalid("parameters start and end are more than %s apart", maxTeamWindow)
	}
	if s.cfg.Watcher != nil {
		kept, _, _, err = s.cfg.Watcher.Watch(tenant(r))
	}
	return kept, q, start.UTC(), end.UTC(), err
}

// e2bTeamMetrics is GET /teams/{team}/metrics: how many sandboxes ran, and how many were started in a second.
func (s *Server) e2bTeamMetrics(w http.ResponseWriter, r *http.Request) error {
	kept, _, start, end, err := s.teamRange(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, teamHistory(kept, start, end))
	return nil
}

// e2bTeamMetricsMax is GET /teams/{team}/metrics/max: the largest value of one of the two, and when it was.
func (s *Server) e2bTeamMetricsMax(w http.ResponseWriter, r *http.Request) error {
	kept, q, start, end, err := s.teamRange(r)
	if err != nil {
		return err
	}
	var value func(api.TeamMetric) float64
	switch m := q.str("metric", 64); m {
	case "concurrent_sandboxes":
		value = func(t api.TeamMetric) float64 { return float64(t.ConcurrentSandboxes) }
	case "sandbox_start_rate":
		value = func(t api.TeamMetric) float64 { return t.SandboxStartRate }
	default:
		q.fail(invalid("parameter metric: %.60q is neither concurrent_sandboxes nor sandbox_start_rate", m))
	}
	if q.err != nil {
		return q.err
	}
	out := api.MaxTeamMetric{}
	for i, t := range teamHistory(kept, start, end) {
		if v := value(t); i == 0 || v > out.Value {
			out = api.MaxTeamMetric{Timestamp: t.Timestamp, TimestampUnix: t.TimestampUnix, Value: v}
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// teamHistory returns points from start to end, each of the time since the one before: the most sandboxes that ran at once, and how many
// were started in a second.
func teamHistory(kept []state.Sandbox, start, end time.Time) []api.TeamMetric {
	step := max(minTeamStep, (end.Sub(start) / teamPoints).Round(time.Second))
	n := int(end.Sub(start)/step) + 1
	type change struct {
		at  time.Time
		add int
	}
	var changes []change
	starts := make([]int, n)
	for _, sb := range kept {
		if sb.StartedAt.IsZero() || sb.StartedAt.After(end) {
			continue
		}
		changes = append(changes, change{sb.StartedAt, 1})
		stop := sb.EndedAt
		if sb.State == state.Paused {
			stop = sb.PausedAt
		}
		if !stop.IsZero() {
			changes = append(changes, change{stop, -1})
		}
		if i := point(sb.StartedAt, start, step); i >= 0 && i < n {
			starts[i]++
		}
	}
	slices.SortStableFunc(changes, func(a, b change) int { return a.at.Compare(b.at) })
	out := make([]api.TeamMetric, n)
	now, next := 0, 0
	for i := range out {
		at := start.Add(time.Duration(i) * step)
		most := now
		for ; next < len(changes) && !changes[next].at.After(at); next++ {
			now += changes[next].add
			if i > 0 { // what was before the first point is not its own
				most = max(most, now)
			}
		}
		if i == 0 {
			most = now
		}
		out[i] = api.TeamMetric{
			Timestamp: at, TimestampUnix: at.Unix(), ConcurrentSandboxes: most, SandboxStartRate: float64(starts[i]) / step.Seconds(),
		}
	}
	return out
}

// point is the number of the point that a time belongs to; negative before the first.
func point(at, start time.Time, step time.Duration) int {
	d := at.Sub(start)
	if d <= -step {
		return -1
	}
	return int((d + step - 1) / step)
}
