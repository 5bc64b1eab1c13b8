// Package envd serves the API that E2B clients expect inside a sandbox: processes, files, and a few facts. It is served on
// the host, by the node, and reaches into the sandbox through its PID 1 only; no token and no protocol of it is ever inside.
//
// It owns the routes and who is let in. Package process has the processes, package filesystem and package files have the
// files. It never knows how a request found its sandbox: that came with the context (package scope).
package envd

import (
	"context"
	"crypto/subtle"
	"net/http"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/files"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// TokenHeader is where a client shows the sandbox's access token.
const TokenHeader = "X-Access-Token"

// Config of a Handler. Everything may be missing.
type Config struct {
	// Context ends what outlives requests: the watchers of directories that clients poll. Watchers counts their goroutines, for
	// whoever ends Context to wait for.
	Context  context.Context //nolint:containedctx // the life of the handler, not of a call
	Watchers *sync.WaitGroup
	// Started is called for every process that was started here, before its first output is sent.
	Started func(scope.Sandbox, guest.ProcessInfo)
	// Usage returns what a sandbox uses, for GET /metrics. It answers from counters and never waits for the sandbox. nil: 501.
	Usage func(ctx context.Context, s scope.Sandbox) (Usage, error)
}

// Handler serves envd. It may serve any number of sandboxes and requests at once.
type Handler struct {
	cfg Config
	mux *http.ServeMux
}

// New returns a handler. Every request must carry a sandbox in its context: scope.With.
func New(cfg Config) *Handler {
	h := &Handler{cfg: cfg, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	h.mux.Handle("GET /metrics", guarded(http.HandlerFunc(h.metrics)))
	h.mux.Handle("GET /envs", guarded(http.HandlerFunc(envs)))
	path, processes := process.New(process.Config{Started: cfg.Started})
	h.mux.Handle(path, guarded(unlimited(processes)))
	path, tree := filesystem.New(filesystem.Config{Context: cfg.Context, Watchers: cfg.Watchers})
	h.mux.Handle(path, guarded(unlimited(tree)))
	content := files.New(files.Config{}) // lets in by a signature too
	h.mux.Handle("/files", content)
	h.mux.Handle("/files/compose", content)
	// What E2B's own control plane tells its daemon; here the node knows it already.
	for _, internal := range []string{"/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"} {
		h.mux.HandleFunc(internal, notFound)
	}
	h.mux.HandleFunc("/", notFound)
	return h
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// guarded lets in who shows the sandbox's token, where it has one.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want := scope.Of(r.Context()).AccessToken
		got := r.Header.Get(TokenHeader)
		switch {
		case want == "" || subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1:
			next.ServeHTTP(w, r)
		case got == "":
			answer.Error(w, http.StatusUnauthorized, "missing access token: the header %s is needed", TokenHeader)
		default:
			answer.Error(w, http.StatusUnauthorized, "invalid access token")
		}
	})
}

// timeoutHeader is how many milliseconds a call of Connect's protocol may take.
const timeoutHeader = "Connect-Timeout-Ms"

// unlimited lets a call whose time is 0 take as long as it likes: the contract has it so, where connect-go ends the call before it begins.
func unlimited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Get(timeoutHeader); v != "" && strings.Trim(v, "0") == "" {
			r.Header.Del(timeoutHeader)
		}
		next.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	answer.Error(w, http.StatusNotFound, "there is nothing at this path")
}
