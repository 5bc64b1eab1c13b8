// Package envdtest serves parts of envd for a real sandbox, for tests.
//
// It owns nothing beyond a test. Only tests import it.
package envdtest

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// Server serves a handler on a unix socket, as a node does, in the scope of a sandbox.
type Server struct {
	Scope   scope.Sandbox
	Sandbox *sandbox.Sandbox
	Client  *http.Client // as a control service's, descriptors included
	URL     string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Start creates a sandbox whose default user is "user" and serves h for it. set may change the sandbox and the scope.
func Start(tb testing.TB, h http.Handler, set ...func(*sandbox.Config, *scope.Sandbox)) *Server {
	tb.Helper()
	host := sandboxtest.NewHost(tb)
	c := host.Config()
	sc := scope.Sandbox{ID: c.ID, User: "user"}
	for _, f := range set {
		f(&c, &sc)
	}
	s := &Server{Sandbox: host.Create(tb, c), URL: "http://envd"}
	sc.Guest, sc.Ended = s.Sandbox.Guest(), s.Sandbox.Done()
	s.Scope = sc
	dir, err := os.MkdirTemp("", "sbe")
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(scope.With(r.Context(), sc)))
	}), ConnContext: handover.WithConn}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	tr := &http.Transport{DisableCompression: true, ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "s"))
			if u, ok := c.(*net.UnixConn); ok {
				return handover.NewConn(u), nil
			}
			return c, err
		},
	}
	s.Client, s.dial = &http.Client{Transport: handover.Transport{Base: tr}}, tr.DialContext
	tb.Cleanup(func() {
		tr.CloseIdleConnections()
		_ = srv.Close()
		<-done
		_ = os.RemoveAll(dir)
	})
	return s
}

// Dial opens a connection to the server, for requests that no client would make.
func (s *Server) Dial(tb testing.TB) net.Conn {
	tb.Helper()
	c, err := s.dial(tb.Context(), "unix", "")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Shell runs a command line in the sandbox as its user and returns its output; it must succeed.
func (s *Server) Shell(tb testing.TB, user, line string) string {
	tb.Helper()
	out, err := sandboxtest.Exec(tb.Context(), s.Sandbox, guest.Start{Argv: []string{"/bin/bash", "-c", line}, User: user})
	if err != nil || out.Exit.Code != 0 {
		tb.Fatalf("%s: %v, %+v", line, err, out)
	}
	return out.Stdout
}
