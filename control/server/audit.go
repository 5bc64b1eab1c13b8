package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// within returns the tenant that a caller's permission for the route is bounded by: the one he acts in, or "" where he has it in
// all tenants.
func (s *Server) within(r *http.Request) (string, error) {
	req := requestOf(r)
	d, err := s.cfg.Access.Decide(rbac.Request{
		Who: req.access.who, Permission: req.needs, Tenant: state.Everywhere, Source: req.access.source, Now: time.Now(),
	})
	if err != nil || d.Allowed && !d.Filter {
		return "", err
	}
	return tenant(r), nil
}

func (s *Server) needAudit() error {
	if s.cfg.Audit == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service keeps no audit log")
	}
	return nil
}

const maxAuditWord = 512 // bytes of a parameter

// auditQuery reads what selects events. A tenant that may see itself alone gets itself alone, whatever it asks for.
func (s *Server) auditQuery(r *http.Request) (*query, audit.Query, error) {
	q, err := parseQuery(r)
	if err != nil {
		return nil, audit.Query{}, err
	}
	aq := audit.Query{
		After: q.time("after"), Before: q.time("before"), Tenant: q.str("tenant", maxAuditWord), User: q.str("user", maxAuditWord),
		Action: q.str("action", maxAuditWord), Resource: q.str("resource", maxAuditWord), Result: q.str("result", maxAuditWord),
		Request: q.str("request", maxAuditWord),
	}
	own, err := s.within(r)
	if err != nil {
		return nil, audit.Query{}, err
	}
	if own != "" {
		if aq.Tenant != "" && aq.Tenant != own {
			q.fail(api.Errorf(http.StatusNotFound, api.CodeNotFound, "tenant %.80q does not exist", aq.Tenant))
		}
		aq.Tenant = own
	}
	return q, aq, q.err
}

// auditEvents is GET /v1/audit: events of this server's log, a page at a time.
func (s *Server) auditEvents(w http.ResponseWriter, r *http.Request) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	q, aq, err := s.auditQuery(r)
	if err != nil {
		return err
	}
	p := audit.Page{
		Limit:     int(q.integer("limit", audit.DefaultPage, 1, audit.MaxPage)),
		From:      uint64(q.integer("from", 0, 1, math.MaxInt64)),
		Ascending: q.order("order") == state.Ascending,
	}
	if q.err != nil {
		return q.err
	}
	events, next, err := s.cfg.Audit.Query(r.Context(), aq, p)
	if err != nil {
		return fmt.Errorf("read the audit log: %w", err)
	}
	if events == nil {
		events = []api.AuditEvent{}
	}
	writeJSON(w, http.StatusOK, api.AuditEvents{Server: s.cfg.Audit.Server(), Log: s.cfg.Audit.ID().String(), Events: events, Next: next})
	return nil
}

// auditStream is GET /v1/audit/stream: events behind the index after, or from now on, as they are stored: server-sent events for clients
// that ask for them, whose ids are the indexes, so that a client that comes back with Last-Event-ID goes on; else one JSON object a line.
func (s *Server) auditStream(w http.ResponseWriter, r *http.Request) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	q, aq, err := s.auditQuery(r)
	if err != nil {
		return err
	}
	last, _ := s.cfg.Audit.Last()
	at := uint64(q.integer("from", int64(last), 0, math.MaxInt64))
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		if at, err = strconv.ParseUint(id, 10, 63); err != nil {
			q.fail(invalid("Last-Event-ID: %.60q is no index", id))
		}
	}
	if q.err != nil {
		return q.err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	sse := strings.Contains(r.Header.Get("Accept"), "text/event-stream")
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	if sse {
		h.Set("Content-Type", "text/event-stream")
	}
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	out := newLiveWriter(w)
	if err := out.rc.Flush(); err != nil {
		return nil //nolint:nilerr // nobody is there any more
	}
	for {
		for { // what is there
			events, next, err := s.cfg.Audit.Query(ctx, aq, audit.Page{Ascending: true, From: at + 1, Limit: audit.MaxPage})
			if err != nil {
				return nil //nolint:nilerr // the stream is under way: its end tells the client to come again
			}
			for i := range events {
				if writeAudit(out, &events[i], sse) != nil {
					return nil
				}
				at = events[i].Index
			}
			if next == 0 {
				break
			}
			at = next - 1
		}
		wait, stop := context.WithTimeout(ctx, s.cfg.BeatInterval)
		err := s.cfg.Audit.Wait(wait, at)
		stop()
		switch {
		case ctx.Err() != nil, err != nil && !errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil: // a sign of life
			beat := "\n"
			if sse {
				beat = ":\n\n"
			}
			if _, err := out.Write([]byte(beat)); err != nil {
				return nil //nolint:nilerr // nobody is there any more
			}
		}
	}
}

func writeAudit(out *liveWriter, e *api.AuditEvent, sse bool) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if sse {
		b = fmt.Appendf(nil, "id: %d\ndata: %s\n", e.Index, b)
	}
	_, err = out.Write(append(b, '\n'))
	return err
}

// auditHead is GET /v1/audit/head: what to keep elsewhere, so that a log that is cut back is found.
func (s *Server) auditHead(w http.ResponseWriter, r *http.Request) error {
	if err := s.needAudit(); err != nil {
		return err
	}
	l := s.cfg.Audit
	out := api.AuditState{Server: l.Server(), Log: l.ID().String(), Keys: []api.AuditKey{}}
	var hash audit.Hash
	out.Last, hash = l.Last()
	out.LastHash = hash.String()
	out.Head, out.Waiting = l.Head()
	keys, err := l.Keys()
	if err != nil && out.Head != nil {
		return fmt.Errorf("read the audit log's keys: %w", err)
	}
	for _, k := range keys {
		out.Keys = append(out.Keys, api.AuditKey{Version: uint32(k.Version), Algorithm: k.Algorithm, Key: k.Key, Fingerprint: k.Fingerprint()})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}
