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

// slowWriter gives each write its own time, so that a stream may last for ever, but no write to a client that is stuck.
type slowWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
	flush bool // after each write
}

func (w *slowWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.limit))
	n, err := w.w.Write(p)
	if err == nil && w.flush {
		err = w.rc.Flush()
	}
	return n, err
}

// liveWriter returns a writer for a stream whose every write is to be seen at once.
func (s *Server) liveWriter(w http.ResponseWriter) *slowWriter {
	return &slowWriter{w: w, rc: http.NewResponseController(w), limit: s.cfg.WriteTimeout, flush: true}
}

// sendBody answers with the bytes of body. An error in the middle goes into the trailer api.ErrorTrailer.
func (s *Server) sendBody(w http.ResponseWriter, r *http.Request, body io.Reader, contentType string, live bool) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", "attachment")
	h.Set("Cache-Control", "no-store")
	h.Set("Trailer", api.ErrorTrailer)
	out := &slowWriter{w: w, rc: http.NewResponseController(w), limit: s.cfg.WriteTimeout, flush: live}
	w.WriteHeader(http.StatusOK)
	if live {
		_ = out.rc.Flush() // the client learns that the stream has begun before the first byte
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

func (u *upload) Read(p []byte) (int, error) {
	_ = u.rc.SetReadDeadline(time.Now().Add(u.limit))
	n, err := u.r.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		_ = u.rc.SetReadDeadline(time.Time{}) // it would end the request while it is served
	default: // the deadline stays: net/http reads on to find the body's end
		u.err = bodyError(err)
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
