package nodeapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// MaxLogEntries is how many entries one answer has at most.
const MaxLogEntries = 1000

// LogQuery says which entries of a sandbox's logbook are wanted: GET /v1/sandboxes/{id}/logbook.
type LogQuery struct {
	After    time.Time // only later ones; zero: from the first that is kept
	Before   time.Time // only earlier ones; zero: to the last
	Level    string    // of this weight and more: debug, info, warn, error; empty: all
	Source   string    // stdout, stderr, pty or platform; empty: all
	Search   string    // in the message
	Limit    int       // at most MaxLogEntries; 0: MaxLogEntries
	Backward bool      // the newest first, and the limit keeps the newest
	// WholeMillis: no page ends within a millisecond. It is shorter then, or, where all of it is of one, longer.
	WholeMillis bool
}

// Values returns the query's parameters.
func (q LogQuery) Values() url.Values {
	v := url.Values{}
	set := func(name, value string) {
		if value != "" {
			v.Set(name, value)
		}
	}
	if !q.After.IsZero() {
		set("after", q.After.UTC().Format(time.RFC3339Nano))
	}
	if !q.Before.IsZero() {
		set("before", q.Before.UTC().Format(time.RFC3339Nano))
	}
	set("level", q.Level)
	set("source", q.Source)
	set("search", q.Search)
	if q.Limit > 0 {
		set("limit", strconv.Itoa(q.Limit))
	}
	if q.Backward {
		set("direction", "backward")
	}
	if q.WholeMillis {
		set("whole_millis", "true")
	}
	return v
}

// Logbook returns entries of a sandbox's logbook, which a node keeps for a day after the sandbox's end.
func (c *Client) Logbook(ctx context.Context, id api.SandboxID, q LogQuery) ([]api.LogEntry, error) {
	var out []api.LogEntry
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/logbook"), q.Values(), nil, &out)
}

// FollowLogbook calls f with entries, those that are there first, until ctx or the sandbox ends, or f returns an error. f(nil) is a sign
// of life, where nothing comes for some seconds.
func (c *Client) FollowLogbook(ctx context.Context, id api.SandboxID, q LogQuery, f func(*api.LogEntry) error) error {
	v := q.Values()
	v.Set("follow", "true")
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/logbook"), v, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	s := bufio.NewScanner(resp.Body)
	s.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for s.Scan() {
		if len(s.Bytes()) == 0 {
			if err := f(nil); err != nil {
				return err
			}
			continue
		}
		var e api.LogEntry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return c.unreachable(ctx, fmt.Errorf("logbook: %w", err))
		}
		if err := f(&e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.Err()
}
