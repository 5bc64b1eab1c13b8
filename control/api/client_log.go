package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// MaxLogEntries is how many entries Client.Log returns at most.
const MaxLogEntries = 1000

// maxLogLine bounds one entry of a followed log, in bytes.
const maxLogLine = 1 << 20

// LogFilter says which entries of a sandbox's log are wanted. The zero value is all, from the oldest that is kept.
type LogFilter struct {
	After    time.Time // only later ones
	Before   time.Time // only earlier ones
	Level    string    // of this weight and more: debug, info, warn, error
	Source   string    // stdout, stderr, pty or platform
	Search   string    // in the message
	Limit    int       // at most MaxLogEntries; 0: MaxLogEntries
	Backward bool      // the newest first, and the limit keeps the newest
}

func (f LogFilter) query() url.Values {
	q := url.Values{}
	for name, v := range map[string]string{"level": f.Level, "source": f.Source, "search": f.Search} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, t := range map[string]time.Time{"after": f.After, "before": f.Before} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	if f.Limit != 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.Backward {
		q.Set("direction", "backward")
	}
	return q
}

// Log returns entries of a sandbox's log, which is kept for a while after the sandbox's end. A page is full where it has as many
// entries as the filter's limit: the next begins after its last entry's time.
func (c *Client) Log(ctx context.Context, id SandboxID, f LogFilter) ([]LogEntry, error) {
	var out []LogEntry
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/log"), f.query(), nil, &out)
}

// FollowLog calls f with entries, those that are there first, until the sandbox or ctx ends, or f returns an error. Only After,
// Level, Source and Search of the filter count. It returns nil where the sandbox has ended.
func (c *Client) FollowLog(ctx context.Context, id SandboxID, filter LogFilter, f func(LogEntry) error) error {
	filter.Before, filter.Limit, filter.Backward = time.Time{}, 0, false
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/log/stream"), filter.query(), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	s := bufio.NewScanner(resp.Body)
	s.Buffer(make([]byte, 0, 64<<10), maxLogLine)
	for ended := false; s.Scan(); {
		switch field, value, _ := strings.Cut(s.Text(), ": "); {
		case field == "event" && value == "end":
			ended = true
		case field == "data" && ended:
			return nil
		case field == "data":
			var e LogEntry
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				return c.unreachable(ctx, fmt.Errorf("log entry: %w", err))
			}
			if err := f(e); err != nil {
				return err
			}
		}
	}
	err = s.Err()
	if err == nil {
		err = errors.New("the log broke off")
	}
	return c.unreachable(ctx, err)
}
