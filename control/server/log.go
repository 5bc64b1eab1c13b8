package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// logQuery reads the parameters that both forms of the log have.
func logQuery(r *http.Request) (nodeapi.LogQuery, error) {
	q, err := parseQuery(r)
	if err != nil {
		return nodeapi.LogQuery{}, err
	}
	lq := nodeapi.LogQuery{
		After: q.time("after"), Before: q.time("before"), Level: q.level(), Source: q.str("source", 16), Search: q.str("search", maxLogSearch),
		Limit: int(q.integer("limit", nodeapi.MaxLogEntries, 1, nodeapi.MaxLogEntries)),
	}
	switch d := q.str("direction", 16); d {
	case "", "forward":
	case "backward":
		lq.Backward = true
	default:
		q.fail(invalid("parameter direction: %.20q is neither forward nor backward", d))
	}
	return lq, q.err
}

// sandboxLog is GET /v1/sandboxes/{id}/log: entries by time, level, source and text, of an ended sandbox too as long as they are kept.
func (s *Server) sandboxLog(w http.ResponseWriter, r *http.Request) error {
	q, err := logQuery(r)
	if err != nil {
		return err
	}
	entries, err := s.entries(r, q)
	if err != nil {
		return err
	}
	if entries == nil {
		entries = []api.LogEntry{}
	}
	writeJSON(w, http.StatusOK, entries)
	return nil
}

// logStream is GET /v1/sandboxes/{id}/log/stream: what is there, then what comes, until the sandbox ends. A WebSocket gets one entry
// in each text message, and pings; everybody else gets server-sent events, whose ids are the entries' times: a client that comes back
// with Last-Event-ID goes on behind it. Comments among them are signs of life. Of a sandbox that has ended there is what is kept.
func (s *Server) logStream(w http.ResponseWriter, r *http.Request) error {
	q, err := logQuery(r)
	if err != nil {
		return err
	}
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		if q.After, err = time.Parse(time.RFC3339Nano, last); err != nil {
			return invalid("Last-Event-ID: %.60q is no time", last)
		}
	}
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	node, err := s.cfg.Lifecycle.NodeOf(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return s.logSocket(ctx, w, r, node, id, q)
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	out := newLiveWriter(w)
	if err := out.rc.Flush(); err != nil {
		return nil //nolint:nilerr // nobody is there any more
	}
	err = node.FollowLogbook(ctx, id, q, func(e *api.LogEntry) error {
		if e == nil {
			_, err := fmt.Fprint(out, ":\n\n")
			return err
		}
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "id: %s\ndata: %s\n\n", e.Time.UTC().Format(time.RFC3339Nano), b)
		return err
	})
	if err == nil {
		_, _ = fmt.Fprint(out, "event: end\ndata: {}\n\n") // what cannot be written any more is the client's loss
	}
	return nil
}

// logSocket is logStream on a WebSocket. It reads nothing but the client's close.
func (s *Server) logSocket(ctx context.Context, w http.ResponseWriter, r *http.Request, node *nodeapi.Client, id api.SandboxID, q nodeapi.LogQuery) error {
	s.streams.begin()
	defer s.streams.end()
	c, err := acceptSocket(w, r)
	if err != nil {
		return nil //nolint:nilerr // it has answered
	}
	defer c.end()
	ctx = c.CloseRead(ctx)
	err = node.FollowLogbook(ctx, id, q, func(e *api.LogEntry) error {
		write, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
		defer cancel()
		if e == nil {
			return c.Ping(write) // who does not answer is gone
		}
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		return c.Write(write, websocket.MessageText, b)
	})
	if err == nil {
		c.close(websocket.StatusNormalClosure, "the sandbox has ended")
	}
	return nil
}
