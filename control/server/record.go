package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/rbac"
)

// records reports whether what the route does is recorded, whether or not it succeeds.
func (rt *route) records() bool {
	method, _, _ := strings.Cut(rt.pattern, " ")
	return method != http.MethodGet && rt.needs.Action != rbac.Read || rt.lasts()
}

// lasts reports whether the route opens something that lasts, with a start and an end.
func (rt *route) lasts() bool {
	return rt.stream && (rt.needs.Action == rbac.Execute || rt.needs.Action == rbac.Connect)
}

// recorded runs a route's handler and records what it did. The record is durable before the client sees the status line, and room for it
// is taken before the handler runs: what could not be recorded is not done. What lasts is recorded when it starts, before anything
// happens, and when it has ended.
func (s *Server) recorded(rt *route, w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Audit == nil || !rt.records() {
		return rt.handle(w, r)
	}
	vital := rt.needs.Action == rbac.Delete
	ticket, err := s.cfg.Audit.Admit(vital)
	if err != nil {
		return err
	}
	rec := recorderOf(w)
	open := true // the ticket is ours
	end := func() error {
		open = false
		e := s.eventOf(r, rec)
		if e.Result != audit.ResultDenied {
			return ticket.Commit(e)
		}
		ticket.Release() // nothing was changed: nobody waits for it, and repeats are counted
		if !rt.lasts() {
			s.cfg.Audit.Deny(e)
		}
		return nil
	}
	returned := false
	defer func() {
		rec.gate = nil
		if !open {
			return
		}
		status := rec.status
		if !returned && status == 0 {
			rec.status = http.StatusInternalServerError // what a panic is answered with
		}
		if err := end(); err != nil {
			s.log.Error("not recorded", "request_id", requestID(r), "route", rt.pattern, "error", err)
		}
		rec.status = status
	}()
	if rt.lasts() {
		if !rt.tickets { // such a route says itself when it knows who asks
			if err := s.recordStart(r); err != nil {
				open = false
				ticket.Release()
				return err
			}
		}
	} else {
		rec.gate = end
	}
	start := time.Now()
	err = rt.handle(w, r)
	returned = true
	requestOf(r).detail("ms", strconv.FormatInt(time.Since(start).Milliseconds(), 10))
	switch {
	case err != nil:
		s.fail(w, r, err)
	case rec.status == 0 && !rec.hijacked:
		w.WriteHeader(http.StatusOK) // as net/http would
	}
	return nil
}

// recordStart records that something that lasts begins. Nothing has happened yet.
func (s *Server) recordStart(r *http.Request) error {
	if s.cfg.Audit == nil {
		return nil
	}
	e := s.eventOf(r, &recorder{})
	e.Result = audit.ResultStarted
	delete(e.Details, "status")
	return s.cfg.Audit.Append(e)
}

// recordRefusal notes a refusal that no recorded handler made.
func (s *Server) recordRefusal(r *http.Request, rec *recorder) {
	if s.cfg.Audit == nil || rec.gate != nil {
		return
	}
	switch rec.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		s.cfg.Audit.Deny(s.eventOf(r, rec))
	}
}

// eventOf says what a request was about and what came of it.
func (s *Server) eventOf(r *http.Request, rec *recorder) audit.Event {
	req := requestOf(r)
	e := audit.Event{
		Tenant: req.caller.Tenant, User: req.caller.User(), Source: remoteHost(r), Agent: r.UserAgent(), Request: req.id,
		Action: "request", Resource: "system", ResourceID: req.object, Result: audit.ResultOK,
		Details: map[string]string{"status": strconv.Itoa(rec.status), "route": req.route},
	}
	if !req.needs.IsZero() {
		e.Resource = string(req.needs.Resource)
		e.Action = e.Resource + "." + string(req.needs.Action)
	}
	if e.User == "" && req.caller.KeyID != "" {
		e.User = "key:" + req.caller.KeyID
	}
	if req.route == "" {
		delete(e.Details, "route")
	}
	if e.ResourceID == "" {
		e.ResourceID = pathObject(r)
	}
	if req.needs.Resource == rbac.File {
		if q, err := url.ParseQuery(r.URL.RawQuery); err == nil && q.Get("path") != "" {
			e.Details["path"] = q.Get("path")
		}
	}
	for k, v := range req.details {
		e.Details[k] = v
	}
	if rec.problem != "" {
		e.Details["error_code"] = rec.problem
	}
	switch {
	case rec.status == http.StatusUnauthorized, rec.status == http.StatusForbidden, rec.status == http.StatusTooManyRequests:
		e.Result = audit.ResultDenied
	case rec.status >= 400:
		e.Result = audit.ResultFailed
	}
	return e
}

// pathObject is the first word of a route's path that names something.
func pathObject(r *http.Request) string {
	for _, name := range []string{"id", "tid", "name", "key", "secret", "node", "team", "tenant"} {
		if v := r.PathValue(name); v != "" {
			return v
		}
	}
	return ""
}

// pass lets the first status line out, once it is recorded what it says. Where it cannot be, another answer goes in its place, and what
// the handler writes goes nowhere: the change may have been made, but nobody is told so.
func (w *recorder) pass(status int) bool {
	gate := w.gate
	if gate == nil || status < 200 {
		return true
	}
	w.gate, w.status = nil, status
	err := gate()
	if err == nil {
		w.status = 0
		return true
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Type", "Content-Encoding", "Location", "ETag", "Last-Modified"} {
		h.Del(name)
	}
	e := api.Errorf(http.StatusServiceUnavailable, api.CodeAudit, "the change may have been made, but it could not be recorded: %s", redact(err.Error()))
	w.status, w.replaced = 0, false
	w.note(e)
	h.Set("Retry-After", "1")
	writeJSON(w, e.Code, e)
	w.replaced = true
	return false
}
