package edge

import (
	"context"
	"io"
	"net/http"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
)

// sendFiles has a body that came as a file sent by the kernel, where it can do that by itself.
func sendFiles(resp *http.Response) error {
	f, ok := resp.Body.(*handover.File)
	if !ok || resp.ContentLength < handover.MinBytes {
		return nil
	}
	if p, ok := resp.Request.Context().Value(passageKey{}).(passage); ok && p.to != nil {
		resp.Body = &sentFile{File: f, ctx: resp.Request.Context(), to: p.to}
	}
	return nil
}

// shared is an answer that two write to: whoever sends a file, and the proxy's timer, which flushes what it has answered before.
type shared struct {
	http.ResponseWriter
	mu sync.Mutex // held by a write
}

// Unwrap implements http.ResponseController's way to what is behind.
func (s *shared) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Write implements http.ResponseWriter.
func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ResponseWriter.Write(p)
}

// FlushError implements http.ResponseController's Flush.
func (s *shared) FlushError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return http.NewResponseController(s.ResponseWriter).Flush()
}

// sentFile is a body that is sent when the proxy, which has answered all but the body by then, begins to read it. The proxy finds it empty.
type sentFile struct {
	*handover.File
	ctx  context.Context //nolint:containedctx // the request's, whose answer this is
	to   http.ResponseWriter
	sent bool
}

// Read implements io.Reader.
func (s *sentFile) Read([]byte) (int, error) {
	if s.sent {
		return 0, io.EOF
	}
	s.sent = true
	if err := s.SendTo(s.ctx, s.to); err != nil {
		return 0, err
	}
	return 0, io.EOF
}
