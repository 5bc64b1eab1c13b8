package server

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const maxLogSearch = 256 // bytes

// e2bLogsV1 is GET /sandboxes/{id}/logs: entries from a time on.
func (s *Server) e2bLogsV1(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	lq := nodeapi.LogQuery{After: from(q.millis("start")), Limit: int(q.integer("limit", nodeapi.MaxLogEntries, 0, 1<<31-1))}
	if q.err != nil {
		return q.err
	}
	lq.Limit = min(lq.Limit, nodeapi.MaxLogEntries)
	entries, err := s.entries(r, lq)
	if err != nil {
		return err
	}
	out := api.SandboxLogs{Logs: make([]api.SandboxLog, 0, len(entries)), LogEntries: make([]api.SandboxLogEntry, 0, len(entries))}
	for _, e := range entries {
		line := map[string]string{}
		for k, v := range e.Fields {
			line[k] = v
		}
		line["level"], line["logger"], line["message"] = e.Level, e.Source, e.Message
		line["timestamp"] = e.Time.UTC().Format(time.RFC3339Nano)
		b, err := json.Marshal(line)
		if err != nil {
			return err
		}
		out.Logs = append(out.Logs, api.SandboxLog{Timestamp: e.Time.UTC(), Line: string(b)})
		out.LogEntries = append(out.LogEntries, e2bEntry(e))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bLogsV2 is GET /v2/sandboxes/{id}/logs: a page of entries, in either direction from a time.
func (s *Server) e2bLogsV2(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	lq := nodeapi.LogQuery{
		Limit: int(q.integer("limit", nodeapi.MaxLogEntries, 0, nodeapi.MaxLogEntries)), Search: q.str("search", maxLogSearch), Level: q.level(),
		WholeMillis: true, // the next cursor is one
	}
	cursor := q.millis("cursor")
	switch d := q.str("direction", 16); d {
	case "", "forward":
		lq.After = from(cursor)
	case "backward":
		lq.Before, lq.Backward = cursor, true
	default:
		q.fail(invalid("parameter direction: %.20q is neither forward nor backward", d))
	}
	if q.err != nil {
		return q.err
	}
	entries, err := s.entries(r, lq)
	if err != nil {
		return err
	}
	out := api.SandboxLogsV2{Logs: make([]api.SandboxLogEntry, 0, len(entries))}
	for _, e := range entries {
		out.Logs = append(out.Logs, e2bEntry(e))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func e2bEntry(e api.LogEntry) api.SandboxLogEntry {
	fields := map[string]string{"source": e.Source}
	for k, v := range e.Fields {
		fields[k] = v
	}
	return api.SandboxLogEntry{Timestamp: e.Time.UTC(), Message: e.Message, Level: e.Level, Fields: fields}
}

// from makes a time the first that is wanted, where a query names the last that is not.
func from(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(-1)
}

// entries asks the node that the sandbox is, or was, on.
func (s *Server) entries(r *http.Request, q nodeapi.LogQuery) ([]api.LogEntry, error) {
	id, err := sandboxID(r)
	if err != nil {
		return nil, err
	}
	node, err := s.cfg.Lifecycle.NodeOf(r.Context(), tenant(r), id)
	if err != nil {
		return nil, err
	}
	return node.Logbook(r.Context(), id, q)
}

// millis reads a Unix time in milliseconds; zero where it is missing.
func (q *query) millis(name string) time.Time {
	v := q.str(name, 32)
	if v == "" || q.err != nil {
		return time.Time{}
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		q.fail(invalid("parameter %s: %.40q is no Unix time in milliseconds", name, v))
		return time.Time{}
	}
	return time.UnixMilli(n)
}

func (q *query) level() string {
	v := q.str("level", 16)
	switch v {
	case "", "debug", "info", "warn", "error":
		return v
	}
	q.fail(invalid("parameter level: %.20q is none of debug, info, warn, error", v))
	return ""
}
