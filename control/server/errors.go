package server

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Words of api.Error.ErrorCode that only the server makes.
const (
	codeNoRoute     = "route_not_found"
	codeNoMethod    = "method_not_allowed"
	codeUnsupported = "unsupported"
	codeUpgrade     = "upgrade_required"
	codeMediaType   = "unsupported_media_type"
	codeTimeout     = "timeout"
	codeUnhealthy   = "sandbox_unhealthy"
	codeNotReady    = "service_not_ready"
)

const (
	statusClientGone = 499     // in the log only: nobody is there to read an answer
	maxMessage       = 2 << 10 // bytes of an error message
)

// invalid is the error for a field or parameter that breaks a rule.
func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}

// unsupported is the error for a field that is right, but would be ignored: a client must not believe that it counts.
func unsupported(field, why string) error {
	return api.Errorf(http.StatusBadRequest, codeUnsupported, "%s: %s", field, why)
}

// mapError is the one place that turns an error into an answer. told is false for errors whose cause stays in the log.
func mapError(err error) (e *api.Error, told bool) {
	var (
		known   *api.Error
		tooBig  *http.MaxBytesError
		limit   *state.LimitError
		inFrame *frame.ErrorBody
	)
	switch {
	case errors.As(err, &known):
		e = api.AsError(err)
	case errors.As(err, &tooBig):
		e = api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "the body is larger than %d bytes", tooBig.Limit)
	case errors.As(err, &limit), errors.Is(err, state.ErrToken):
		e = api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%s", err.Error())
	case errors.As(err, &inFrame):
		e = nodeapi.GuestError(inFrame)
	case errors.Is(err, state.ErrNotFound):
		e = api.Errorf(http.StatusNotFound, api.CodeNotFound, "%s", err.Error())
	case errors.Is(err, state.ErrSuspended):
		e = api.Errorf(http.StatusForbidden, api.CodeSuspended, "%s", err.Error())
	case errors.Is(err, state.ErrExists), errors.Is(err, state.ErrConflict):
		e = api.Errorf(http.StatusConflict, api.CodeConflict, "%s", err.Error())
	case errors.Is(err, state.ErrNoLeader), errors.Is(err, state.ErrUnknownOutcome):
		e = api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%s", err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		e = api.Errorf(http.StatusGatewayTimeout, codeTimeout, "the request took too long")
	default:
		return api.Errorf(http.StatusInternalServerError, api.CodeInternal, "internal error"), false
	}
	if e.Code < 400 || e.Code > 599 { // a node's or a guest's word; never a success by mistake
		e.Code = http.StatusInternalServerError
	}
	e.Message = clip(redact(e.Message))
	return e, true
}

// fail answers a request with err.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		recorderOf(w).status = statusClientGone
		return
	}
	e, told := mapError(err)
	if !told {
		s.log.Error("request failed", "request_id", requestID(r), "method", r.Method, "path", loggedPath(r), "error", redact(err.Error()))
		e.Message = "internal error; the service's log has more under request id " + requestID(r)
	}
	if e.Code == http.StatusTooManyRequests || e.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter(err))
	}
	if e.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="soulbox"`)
	}
	rec := recorderOf(w)
	rec.note(e)
	recorded := rec.gate != nil
	writeJSON(w, e.Code, e)
	if !recorded {
		s.recordRefusal(r, rec)
	}
}

// retryAfter is how long a client waits, in seconds: as the error says, else one.
func retryAfter(err error) string {
	var says interface{ RetryAfter() time.Duration }
	if errors.As(err, &says) {
		return strconv.Itoa(max(1, int(math.Ceil(says.RetryAfter().Seconds()))))
	}
	return "1"
}

// writeJSON answers with v. An error of the connection is the client's.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // no type of the API can do that
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// clip shortens a message to maxMessage bytes, at a rune's border.
func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	n := maxMessage
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
