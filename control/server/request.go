package server

import (
	"bufio"
	"crypto/rand"
	"net"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/rbac"
)

// request is what the chain knows of a request.
type request struct {
	id     string
	route  string // pattern; empty where none matched
	caller auth.Identity
	access access

	// For the audit log: what the route needs, what the request made or changed where its path does not say, and more about it.
	needs   rbac.Permission
	object  string
	details map[string]string
}

// detail adds something to the record of the request.
func (req *request) detail(name, value string) {
	if req.details == nil {
		req.details = map[string]string{}
	}
	req.details[name] = value
}

type requestKey struct{}

func requestOf(r *http.Request) *request {
	if req, ok := r.Context().Value(requestKey{}).(*request); ok {
		return req
	}
	return &request{}
}

func requestID(r *http.Request) string { return requestOf(r).id }

func caller(r *http.Request) auth.Identity { return requestOf(r).caller }

func tenant(r *http.Request) string { return caller(r).Tenant }

// chooseRequestID takes the client's own id where it is a harmless word, else makes one.
func chooseRequestID(r *http.Request) string {
	id := r.Header.Get(api.RequestIDHeader)
	if len(id) == 0 || len(id) > 64 {
		return rand.Text()
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return rand.Text()
		}
	}
	return redact(id)
}

// recorder is the ResponseWriter of every request: it notes what was answered.
type recorder struct {
	http.ResponseWriter
	limit    time.Duration // for one write
	status   int           // 0: nothing written yet
	bytes    int64
	problem  string // error_code of the answer
	hijacked bool

	gate     func() error // what must succeed before the status line leaves; nil: nothing, or it has
	replaced bool         // the answer is another one than the handler's, which goes nowhere
}

// recorderOf returns the recorder under w.
func recorderOf(w http.ResponseWriter) *recorder {
	if rec, ok := w.(*recorder); ok {
		return rec
	}
	return &recorder{ResponseWriter: w}
}

func (w *recorder) note(e *api.Error) { w.problem = e.ErrorCode }

// extend gives the next write its time. The request itself may have lasted longer than any write may: an upload of hours,
// a stream that was silent.
func (w *recorder) extend() {
	if !w.hijacked && w.limit > 0 {
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.limit))
	}
}

func (w *recorder) WriteHeader(status int) {
	if w.replaced || !w.pass(status) {
		return
	}
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.gate != nil {
		w.WriteHeader(http.StatusOK)
	}
	if w.replaced {
		return len(p), nil
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.extend()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Hijack implements http.Hijacker.
func (w *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.hijacked, w.status = true, http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

// Unwrap is for http.ResponseController: deadlines and flushes go to the connection itself.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
