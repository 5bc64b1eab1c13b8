package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/soulbox-dev/soulbox/control/api"
)

// chain puts around next what every request passes, whatever its route: request id, access log, recovery and CORS. What
// depends on the route is in endpoint.
func (s *Server) chain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		req := &request{id: chooseRequestID(r)}
		w := &recorder{ResponseWriter: rw, limit: s.cfg.WriteTimeout}
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, req))
		w.Header().Set(api.RequestIDHeader, req.id)
		start := time.Now()
		defer func() { s.logAccess(w, r, req, time.Since(start)) }()
		defer s.recover(w, r)
		if cors(w, r) {
			return
		}
		next.ServeHTTP(w, r)
		w.extend() // net/http writes the rest
	})
}

// endpoint puts around a route's handler what depends on the route: the version gate, the server that
// answers, the key, and the time limit.
func (s *Server) endpoint(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := requestOf(r)
		req.route, req.needs = rt.pattern, rt.needs
		if !rt.open {
			if err := checkClient(r); err != nil {
				s.fail(w, r, err)
				return
			}
		}
		if s.cfg.Leader != nil && !rt.open && !rt.local {
			here, err := s.bring(&rt, w, r)
			if err != nil {
				s.fail(w, r, err)
			}
			if !here {
				return
			}
			if !rt.stream {
				s.here.begin()
				defer s.here.end()
			}
		}
		if !rt.open && !rt.tickets {
			err := s.authenticate(r, req)
			if err == nil {
				err = s.authorize(r, req, &rt)
			}
			if err != nil {
				s.fail(w, r, err)
				return
			}
		}
		if err := s.countCall(r); err != nil {
			s.fail(w, r, err)
			return
		}
		if !rt.stream {
			ctx, cancel := context.WithTimeout(r.Context(), s.cfg.CallTimeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if err := s.recorded(&rt, w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// recover turns a panic into a 500 where nothing is written yet, else into an end of the connection.
func (s *Server) recover(w *recorder, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // the value itself is the sign
		panic(v)
	}
	s.log.Error("handler panicked", "request_id", requestID(r), "method", r.Method, "path", loggedPath(r),
		"panic", redact(fmt.Sprint(v)), "stack", redact(string(debug.Stack())))
	if w.status != 0 || w.hijacked {
		panic(http.ErrAbortHandler)
	}
	e := api.Errorf(http.StatusInternalServerError, api.CodeInternal,
		"internal error; the service's log has more under request id %s", requestID(r))
	w.note(e)
	writeJSON(w, e.Code, e)
}

// logAccess writes one line for a request. It has no query, no header and no body: those may hold secrets.
func (s *Server) logAccess(w *recorder, r *http.Request, req *request, took time.Duration) {
	route := req.route
	if route == "" {
		route = "none"
	}
	labels := []metrics.Label{{Name: "route", Value: route}, {Name: "status", Value: strconv.Itoa(w.status)}}
	s.metrics.IncrCounterWithLabels([]string{"soulbox", "http", "requests"}, 1, labels)
	s.metrics.AddSampleWithLabels([]string{"soulbox", "http", "duration_ms"}, float32(took.Seconds()*1000), labels[:1])
	level := hclog.Info
	if strings.HasSuffix(route, "/health") || strings.HasSuffix(route, "/metrics") {
		level = hclog.Trace
	}
	if !s.log.IsDebug() && level == hclog.Trace {
		return
	}
	args := []any{"method", r.Method, "path", loggedPath(r), "status", w.status, "bytes", w.bytes,
		"ms", float64(took.Microseconds()) / 1000, "remote", remoteHost(r), "request_id", req.id}
	if req.caller.KeyID != "" {
		args = append(args, "key_id", req.caller.KeyID, "tenant", req.caller.Tenant)
	} else if !req.caller.IsZero() {
		args = append(args, "user", req.caller.User(), "tenant", req.caller.Tenant)
	}
	if w.problem != "" {
		args = append(args, "error_code", w.problem)
	}
	s.log.Log(level, "request", args...)
}

// loggedPath returns the path as it came, escaped, so that no byte of it can forge a line, and without its query.
func loggedPath(r *http.Request) string {
	p := r.URL.EscapedPath()
	if len(p) > 256 {
		p = p[:256] + "…"
	}
	return redact(p)
}

func remoteHost(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}
