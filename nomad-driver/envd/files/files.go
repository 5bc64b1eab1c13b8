// Package files is how E2B clients upload and download files of a sandbox: GET and POST /files, and POST /files/compose.
//
// It owns these routes with their own authorisation, which unlike that of the rest of envd may be a signature. Every file is
// opened inside the sandbox, by its PID 1 as the user that the request names; this package copies bytes between the
// descriptor and the client and never resolves a path on the host. What listing and watching is, is package filesystem.
package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Config is what New needs. Zero values take the defaults.
type Config struct {
	// IdleTimeout is how long a body may stand still, in either direction. Default 60 s.
	IdleTimeout time.Duration
	// MaxBytes bounds what one request may write, decompressed. Default 64 GiB: the sandbox's disk limit is what counts.
	MaxBytes int64
}

// Defaults of Config.
const (
	DefaultIdleTimeout = time.Minute
	DefaultMaxBytes    = 64 << 30
)

type handler struct{ Config }

// New returns the handler of /files and /files/compose. Requests carry their sandbox (package scope); New's handler
// authorises them itself.
func New(c Config) http.Handler {
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	return handler{c}
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := scope.Of(r.Context())
	var serve func(http.ResponseWriter, *http.Request) error
	authorize := Authorize
	switch {
	case r.URL.Path == "/files" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		serve = h.download
	case r.URL.Path == "/files" && r.Method == http.MethodPost:
		serve = h.upload
	case r.URL.Path == "/files/compose" && r.Method == http.MethodPost:
		serve, authorize = h.compose, AuthorizeToken
	case r.URL.Path == "/files" || r.URL.Path == "/files/compose":
		write(w, &Error{Code: http.StatusMethodNotAllowed, Message: "method " + r.Method + " is not allowed here"})
		return
	default:
		write(w, &Error{Code: http.StatusNotFound, Message: "no such route"})
		return
	}
	err := authorize(r, s.AccessToken)
	if err == nil {
		err = serve(w, r)
	}
	if err != nil {
		write(w, errorOf(s, err))
	}
}

// Error is an answer that is not a success.
type Error struct {
	Code    int    `json:"code"` // HTTP status
	Message string `json:"message"`
	word    string // the sandbox's own, for answer.WordHeader
}

func (e *Error) Error() string { return e.Message }

func fail(code int, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// errBroken says that an answer broke off after its beginning.
var errBroken = errors.New("broken off")

// pathError says what the guest found wrong with a path.
type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return e.err.Error() }
func (e *pathError) Unwrap() error { return e.err }

// errorOf is the one place where errors become answers of this package.
func errorOf(s scope.Sandbox, err error) *Error {
	var (
		e       *Error
		user    *place.UserError
		badPath *place.PathError
		at      *pathError
		body    *frame.ErrorBody
	)
	switch {
	case errors.Is(err, errBroken):
		panic(http.ErrAbortHandler) // break the connection, so that nobody takes what came for complete
	case errors.As(err, &e):
		return e
	case errors.As(err, &user):
		return fail(http.StatusUnauthorized, "%v", user)
	case errors.As(err, &badPath):
		return fail(http.StatusBadRequest, "%v", badPath)
	case errors.As(err, &body):
		path := ""
		if errors.As(err, &at) {
			path = at.path
		}
		e := reported(path, body)
		e.word = body.Code
		return e
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		e := fail(http.StatusInsufficientStorage, "not enough disk space available")
		e.word = guest.CodeNoSpace
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fail(http.StatusRequestTimeout, "%v", place.Cause(err))
	case place.Ended(s):
		return fail(http.StatusBadGateway, "sandbox %s has ended", s.ID)
	case errors.Is(err, guest.ErrBadAnswer):
		return fail(http.StatusInternalServerError, "%v", err)
	}
	return fail(http.StatusBadGateway, "sandbox %s does not answer: %v", s.ID, place.Cause(err))
}

func reported(path string, body *frame.ErrorBody) *Error {
	if place.TooOld(body) {
		return fail(http.StatusNotImplemented, "the sandbox was made before this operation was known: %s", body.Message)
	}
	switch body.Code {
	case guest.CodeNotFound:
		return fail(http.StatusNotFound, "%s", place.Missing(path))
	case guest.CodeIsDir:
		return fail(http.StatusBadRequest, "%s", place.IsDirectory(path))
	case guest.CodePermission:
		return fail(http.StatusForbidden, "%s", body.Message)
	case guest.CodeNoSpace:
		return fail(http.StatusInsufficientStorage, "not enough disk space available: %s", body.Message)
	case guest.CodeLimit:
		return fail(http.StatusTooManyRequests, "%s", body.Message)
	case guest.CodeUnknownUser:
		return fail(http.StatusUnauthorized, "%s", body.Message)
	case guest.CodeBadRequest, guest.CodeNotDir, guest.CodeLoop, guest.CodeExists, guest.CodeCrossDevice:
		return fail(http.StatusBadRequest, "%s", body.Message)
	}
	return fail(http.StatusInternalServerError, "%s", body.Message)
}

func write(w http.ResponseWriter, e *Error) {
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Disposition", "Etag", "Last-Modified", ModeHeader} {
		h.Del(name)
	}
	if e.word != "" {
		h.Set(answer.WordHeader, e.word)
	}
	writeJSON(w, e.Code, &Error{Code: e.Code, Message: strings.ToValidUTF8(e.Message, "\ufffd")})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever has left does not hear it
}
