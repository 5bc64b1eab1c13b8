package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	maxRequestBytes = 2 << 20 // of a JSON request
	shutdownTimeout = 5 * time.Second
	headerTimeout   = 10 * time.Second
	ioIdle          = time.Minute // without a byte moving, an upload or download is given up
)

// handler answers one request. An error that it returns is written as an api.Error, unless it has written something
// itself.
type handler func(w http.ResponseWriter, r *http.Request) error

func (n *Node) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]handler{
		"GET /v1/node":    n.getNode,
		"GET /v1/metrics": n.getMetrics,
		"GET /v1/events":  n.getEvents,

		"POST /v1/sandboxes":                      n.postSandbox,
		"GET /v1/sandboxes":                       n.getSandboxes,
		"GET /v1/sandboxes/{id}":                  n.getSandbox,
		"DELETE /v1/sandboxes/{id}":               n.deleteSandbox,
		"POST /v1/sandboxes/{id}/stop":            n.postStop,
		"POST /v1/sandboxes/{id}/claim":           n.postClaim,
		"POST /v1/claims":                         n.postClaims,
		"POST /v1/sandboxes/{id}/pause":           n.postPause,
		"POST /v1/sandboxes/{id}/resume":          n.postResume,
		"POST /v1/sandboxes/{id}/snapshot":        n.postSnapshot,
		"GET /v1/snapshots":                       n.getSnapshots,
		"POST /v1/snapshots/collect":              n.collectSnapshots,
		"GET /v1/snapshots/{id}":                  n.getSnapshot,
		"PUT /v1/snapshot-key":                    n.putSnapshotKey,
		"DELETE /v1/snapshots/{id}":               n.deleteSnapshot,
		"GET /v1/sandboxes/{id}/wait":             n.getWait,
		"PUT /v1/sandboxes/{id}/deadline":         n.putDeadline,
		"PUT /v1/sandboxes/{id}/limits":           n.putLimits,
		"GET /v1/sandboxes/{id}/network":          show(n.NetworkStatus),
		"PUT /v1/sandboxes/{id}/network":          ask(n.SetNetwork),
		"POST /v1/sandboxes/{id}/network/dry-run": ask(n.DryRunNetwork),
		"GET /v1/sandboxes/{id}/published":        show(n.Published),
		"PUT /v1/sandboxes/{id}/published":        ask(n.SetPublished),
		"POST /v1/sandboxes/{id}/signal":          n.postSignal,
		"GET /v1/sandboxes/{id}/health":           n.getHealth,
		"GET /v1/sandboxes/{id}/stats":            n.getStats,
		"GET /v1/sandboxes/{id}/metrics":          n.getSamples,
		"GET /v1/metrics/latest":                  n.getLatest,
		"GET /v1/sandboxes/{id}/processes":        n.getProcesses,
		"POST /v1/sandboxes/{id}/processes":       n.postProcess,
		"POST /v1/sandboxes/{id}/resize":          n.postResize,
		"POST /v1/sandboxes/{id}/stdin":           n.postStdin,
		"POST /v1/sandboxes/{id}/exec":            n.postExec,
		"POST /v1/sandboxes/{id}/attach":          n.postAttach,
		"GET /v1/sandboxes/{id}/logs":             n.getLogs,
		"GET /v1/sandboxes/{id}/logbook":          n.getLogbook,

		"POST /v1/sandboxes/{id}/network/test":    ask(n.TestNetwork),
		"POST /v1/sandboxes/{id}/published/renew": show(n.RenewPublished),

		"GET /v1/sandboxes/{id}/ports/{port}": n.getPort,

		"GET /v1/sandboxes/{id}/files":    n.getFile,
		"PUT /v1/sandboxes/{id}/files":    n.putFile,
		"DELETE /v1/sandboxes/{id}/files": n.deleteFile,
		"GET /v1/sandboxes/{id}/stat":     n.getStat,
		"GET /v1/sandboxes/{id}/dir":      n.getDir,
		"POST /v1/sandboxes/{id}/dir":     n.postDir,
		"POST /v1/sandboxes/{id}/rename":  n.postRename,
		"GET /v1/sandboxes/{id}/archive":  n.getArchive,
		"PUT /v1/sandboxes/{id}/archive":  n.putArchive,

		"GET /v1/templates":                        n.getTemplates,
		"GET /v1/templates/{name}":                 n.getTemplate,
		"PUT /v1/templates/{name}":                 n.putTemplate,
		"DELETE /v1/templates/{name}":              n.deleteTemplate,
		"DELETE /v1/templates/{name}/own/{tenant}": n.deleteOwnTemplate,
		"GET /v1/templates/{name}/export":          n.exportTemplate,
	} {
		mux.Handle(pattern, n.handle(h))
	}
	mux.Handle("/v1/sandboxes/{id}/envd/{rest...}", n.envd(n.newEnvd()))
	mux.Handle("/", n.handle(func(_ http.ResponseWriter, r *http.Request) error {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "the node has no %s %.100q", r.Method, r.URL.Path)
	}))
	return mux
}

// handle wraps what all requests have in common.
func (n *Node) handle(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &answer{ResponseWriter: w}
		out.Header().Set(nodeapi.VersionHeader, strconv.Itoa(nodeapi.Version))
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // a sentinel of panics
					panic(p)
				}
				n.log.Error("request panics", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				out.fail(api.Errorf(http.StatusInternalServerError, api.CodeInternal, "internal error"))
			}
		}()
		err := checkPeer(r)
		if err == nil {
			err = checkVersion(r)
		}
		if err == nil {
			err = h(out, r)
		}
		if err == nil {
			return
		}
		e := apiError(err)
		if e.Code >= http.StatusInternalServerError && r.Context().Err() == nil {
			n.log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "status", e.Code, "error", e.Message)
		}
		out.fail(e)
	})
}

// answer remembers whether something was answered already.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach what is wrapped.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// fail writes e, or, where a body is under way, breaks the connection so that nobody takes it for complete.
func (a *answer) fail(e *api.Error) {
	if a.begun {
		panic(http.ErrAbortHandler)
	}
	writeJSON(a, e.Code, e)
}

// writeJSON writes v with a status. What cannot be written any more is the client's loss.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":500,"error_code":"internal","message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// readJSON reads the request's body into v: exactly one JSON value without unknown fields. A request that asks for
// something that this node does not know is refused instead of half done.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	return decodeJSON(http.MaxBytesReader(w, r.Body, maxRequestBytes), v)
}

func decodeJSON(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLong *http.MaxBytesError
		if errors.As(err, &tooLong) {
			return err
		}
		return invalid("the body is not the JSON that is expected: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("the body goes on after its JSON value")
	}
	return nil
}

// checkVersion refuses a client that speaks another version of the API.
func checkVersion(r *http.Request) error {
	v := r.Header.Get(nodeapi.VersionHeader)
	if v == "" || v == strconv.Itoa(nodeapi.Version) {
		return nil
	}
	return api.Errorf(http.StatusBadRequest, api.CodeVersion,
		"the client speaks version %.20q of the node API, this node speaks %d: update the older of the two", v, nodeapi.Version)
}

// peerKey is the context key of the *unix.Ucred of a connection to the unix socket, or the error of asking for it.
type peerKey struct{}

// checkPeer lets in, over the unix socket, root and the user that the daemon runs as. TCP has checked the certificate.
func checkPeer(r *http.Request) error {
	switch p := r.Context().Value(peerKey{}).(type) {
	case nil:
		return nil
	case *unix.Ucred:
		if p.Uid == 0 || int(p.Uid) == os.Geteuid() {
			return nil
		}
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "user %d may not use the node's socket", p.Uid)
	case error:
		return fmt.Errorf("peer of the socket: %w", p)
	default:
		return api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "unknown peer")
	}
}

// local tells that a request came over the unix socket.
func local(r *http.Request) bool {
	_, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
	return ok
}

func peerOf(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	var cred *unix.Ucred
	raw, err := uc.SyscallConn()
	if err == nil {
		if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
			err = cerr
		}
	}
	if err != nil {
		return context.WithValue(ctx, peerKey{}, err)
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// serve answers on the unix socket and, where it is configured, on TCP until ctx ends.
func (n *Node) serve(ctx context.Context) error {
	unixListener, err := n.listenUnix()
	if err != nil {
		return err
	}
	listeners := []net.Listener{unixListener}
	if n.cfg.Address != "" {
		l, err := n.listenTLS()
		if err != nil {
			_ = unixListener.Close()
			return err
		}
		listeners = append(listeners, l)
	}
	srv := &http.Server{
		Handler:           n.routes(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return handover.WithConn(peerOf(ctx, c), c) },
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          n.log.StandardLogger(nil),
		TLSNextProto:      noHTTP2,
	}
	n.log.Info("serving", "socket", n.cfg.Socket, "address", n.cfg.Address, "node", n.id, "epoch", n.hub.epoch)
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	<-gctx.Done()
	n.cancel() // requests that wait end with it
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(stopCtx); err != nil {
		_ = srv.Close()
	}
	n.sessions.Wait() // hijacked connections, which ended with n.ctx
	if err := g.Wait(); err != nil {
		return err
	}
	return nil
}

// listenUnix takes the place of whatever is at the socket's path at once, so that a client finds the old daemon or the
// new one, but never none. The lock on the state directory has shown that no other daemon is alive behind it.
func (n *Node) listenUnix() (net.Listener, error) {
	temp := n.cfg.Socket + "~"
	if len(temp) > maxSocketPath {
		return nil, fmt.Errorf("socket %q is longer than %d bytes", n.cfg.Socket, maxSocketPath-1)
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", n.cfg.Socket, err)
	}
	l.SetUnlinkOnClose(false) // its path is not the one it was made at
	// Whoever connects before the chmod meets checkPeer like everybody.
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, n.cfg.Socket)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(temp)
		return nil, fmt.Errorf("socket %s: %w", n.cfg.Socket, err)
	}
	return &unixListener{UnixListener: l, path: n.cfg.Socket}, nil
}

// unixListener removes its path when it closes. That happens before the lock is let go, so the path is still its own.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if rerr := os.Remove(l.path); err == nil && rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = rerr
	}
	return err
}

// pathID returns the sandbox that a request is about.
func pathID(r *http.Request) (api.SandboxID, error) {
	id, err := api.ParseSandboxID(r.PathValue("id"))
	if err != nil {
		return "", invalid("%v", err)
	}
	return id, nil
}

// boolParam reads a query parameter; missing is false.
func boolParam(r *http.Request, name string) (bool, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, invalid("%s: %.20q is not true or false", name, s)
	}
	return v, nil
}

// intParam reads a query parameter of at least 0; missing is 0.
func intParam(r *http.Request, name string) (int64, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || strings.HasPrefix(s, "+") {
		return 0, invalid("%s: %.30q is not a number of at least 0", name, s)
	}
	return v, nil
}
