package server

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// copyBytes is the size of the buffer of a download: large enough that the cost of a system call does not count.
const copyBytes = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// liveWriter is a writer whose every write is to be seen at once.
type liveWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newLiveWriter(w http.ResponseWriter) *liveWriter {
	return &liveWriter{w: w, rc: http.NewResponseController(w)}
}

func (w *liveWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err == nil {
		err = w.rc.Flush()
	}
	return n, err
}

// sendBody answers with the bytes of body. An error in the middle goes into the trailer api.ErrorTrailer.
func (s *Server) sendBody(w http.ResponseWriter, r *http.Request, body io.Reader, contentType string, live bool) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", "attachment")
	h.Set("Cache-Control", "no-store")
	h.Set("Trailer", api.ErrorTrailer)
	w.WriteHeader(http.StatusOK)
	out := struct{ io.Writer }{w}
	if live {
		l := newLiveWriter(w)
		_ = l.rc.Flush() // the client learns that the stream has begun before the first byte
		out.Writer = l
	}
	buf, _ := copyBuffers.Get().(*[copyBytes]byte)
	defer copyBuffers.Put(buf)
	_, err := io.CopyBuffer(out, struct{ io.Reader }{body}, buf[:])
	if err == nil || r.Context().Err() != nil {
		return
	}
	e, told := mapError(err)
	if !told {
		e = api.Errorf(http.StatusBadGateway, api.CodeUnavailable, "the node broke off the transfer")
	}
	recorderOf(w).note(e)
	if b, err := json.Marshal(e); err == nil {
		h.Set(api.ErrorTrailer, string(b))
	}
}

// upload is the body of a request that is passed on as it comes. Each read has its own time.
type upload struct {
	r     io.Reader
	rc    *http.ResponseController
	limit time.Duration
	err   error // why it ended early
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) *upload {
	return &upload{r: r.Body, rc: http.NewResponseController(w), limit: s.cfg.BodyTimeout}
}

// Close leaves the request's own body to the server.
func (u *upload) Close() error { return nil }

// Fault returns why the body ended early, or nil.
func (u *upload) Fault() error { return u.err }

func (u *upload) Read(p []byte) (int, error) {
	_ = u.rc.SetReadDeadline(time.Now().Add(u.limit))
	n, err := u.r.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		_ = u.rc.SetReadDeadline(time.Time{}) // it would end the request while it is served
	default: // the deadline stays: net/http reads on to find the body's end
		u.err = bodyError(err)
		err = u.err
	}
	return n, err
}

// fault returns why an upload failed: because of its body, where that is so, else err.
func (u *upload) fault(err error) error {
	if err != nil && u.err != nil {
		return u.err
	}
	return err
}
