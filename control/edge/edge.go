// Package edge is the way from the world to a port of a sandbox: it finds the sandbox that a request means, checks what the
// contract asks for at this place, and passes the request on.
//
// It owns the routing by host name, by header and by signature, and the answers where there is nothing behind a name. API keys
// are no business of it: who knows a sandbox's id may knock, the sandbox's tokens guard what is behind. It keeps nothing; where
// a sandbox is comes from memory (Sandboxes).
package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
)

// EnvdPort is the port that clients of the contract use for processes and files. Nobody listens on it inside: the node answers.
const EnvdPort = 49983

// ErrNotFound is in the chain of every error that says that a sandbox does not exist or does not run.
var ErrNotFound = errors.New("sandbox not found")

// ErrPaused is in the chain of Find's error for a sandbox that is paused and resumes for traffic.
var ErrPaused = errors.New("sandbox is paused")

// ErrPortClosed is in the chain of DialPort's error where nobody listens.
var ErrPortClosed = errors.New("port is not open")

// Sandbox is what the edge needs to know of one that runs.
type Sandbox struct {
	ID           api.SandboxID
	Tenant       string // whose it is, for Config.Denied
	Suspended    bool   // that tenant may look, and no more
	EnvdToken    string // empty: envd needs none
	TrafficToken string // empty: every port is public
	MaskHost     string // replaces the Host that the server inside sees; ${PORT} stands for the port
	HTTPSPorts   []int  // ports whose servers speak TLS
	Node         Node
}

// Node is the way to the node that a sandbox is on. It may be used from many goroutines.
type Node interface {
	// DialPort connects to a TCP port inside. Errors have ErrNotFound or ErrPortClosed in their chain where that is why.
	DialPort(ctx context.Context, id api.SandboxID, port int) (net.Conn, error)
	// Envd carries a request to a sandbox's envd. The request's path is the client's own.
	Envd(id api.SandboxID) (rt http.RoundTripper, prefix string)
	// URL is the address of the node's own API, without a path. Empty: it has none that others reach.
	URL() string
}

// Sandboxes finds sandboxes, in memory, whoever they belong to. It is called for every request, from many goroutines.
type Sandboxes interface {
	// Find returns a sandbox that runs, or an error with ErrNotFound in its chain, or one with ErrPaused.
	Find(id api.SandboxID) (Sandbox, error)
	// Wake resumes a sandbox that Find said is paused, and returns when it runs. However many ask, it is resumed once. ErrPaused is in the chain of its
	// error where it is paused, or moves, again by then.
	Wake(ctx context.Context, id api.SandboxID) (Sandbox, error)
	// Each calls f with every sandbox that runs and has an EnvdToken until f returns false. Node is not filled in.
	Each(f func(Sandbox) bool)
}

// Config of an Edge. Sandboxes is required.
type Config struct {
	Sandboxes Sandboxes
	Links     Verifier // of our own links; nil: there are none
	Logger    hclog.Logger
	Traffic   *Traffic // what is under way; nil: nobody else looks at it
	// MaxConnections is how many requests to one sandbox go on at once, 1024 where zero. More are answered with 429.
	MaxConnections int
	// Denied is told of every request that is not let in, before it is answered. It must not wait. nil: nobody is told.
	Denied func(r *http.Request, d Denial)
	// Leader has the control server that leads answer a request for a sandbox that this one does not find running. here says that it is this
	// one: nothing was written. An error is nobody's answer. nil: there is no other.
	Leader func(w http.ResponseWriter, r *http.Request) (here bool, err error)
}

// Denial is a request that was not let in.
type Denial struct {
	Sandbox Sandbox // the zero one: nobody knows which
	Port    int
	Status  int    // of the answer
	Why     string // for the operator: no word of it is a secret
}

// Edge passes requests on. Make it with New.
type Edge struct {
	cfg     Config
	ports   *http.Transport // to all ports but envd's
	grpc    *http.Transport // to the same, with HTTP/2
	proxy   *httputil.ReverseProxy
	current *Traffic
}

const (
	dialTimeout = 15 * time.Second
	wakeTimeout = 60 * time.Second // until a paused sandbox runs again
	idleTimeout = 90 * time.Second // of a connection to a server inside that nobody uses
	maxConns    = 1024
)

// New returns an edge.
func New(cfg Config) *Edge {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = maxConns
	}
	if cfg.Traffic == nil {
		cfg.Traffic = new(Traffic)
	}
	e := &Edge{cfg: cfg, current: cfg.Traffic}
	e.ports = &http.Transport{
		DialContext: e.dialPort, DialTLSContext: dialTLS(e.dialPort, "http/1.1"), DisableCompression: true, IdleConnTimeout: idleTimeout, MaxIdleConns: 512, MaxIdleConnsPerHost: 16,
	}
	e.grpc = e.ports.Clone()
	e.grpc.Protocols = new(http.Protocols)
	e.grpc.Protocols.SetUnencryptedHTTP2(true)
	e.grpc.Protocols.SetHTTP2(true)
	e.grpc.DialTLSContext = dialTLS(e.dialPort, "h2")
	e.proxy = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: transport{e}, FlushInterval: -1, BufferPool: &buffers{}, ErrorHandler: e.failed,
		ErrorLog: log.New(cfg.Logger.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
	}
	return e
}

// Close lets go of connections that are not in use.
func (e *Edge) Close() {
	e.ports.CloseIdleConnections()
	e.grpc.CloseIdleConnections()
}

// Wrap returns a handler that serves requests to sandboxes itself and leaves all others to next.
func (e *Edge) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, err := routeOf(r)
		if err == nil && (t.id != "" || t.signed) {
			err = checkLength(r)
		}
		switch {
		case err != nil:
			writeError(w, http.StatusBadRequest, err.Error())
		case t.id == "" && !t.signed:
			next.ServeHTTP(w, r)
		case e.cfg.Leader != nil && !e.finds(r, t):
			here, err := e.cfg.Leader(w, r)
			switch {
			case err != nil && r.Context().Err() == nil:
				w.Header().Set("Retry-After", "1")
				writeError(w, http.StatusServiceUnavailable, err.Error())
			case here:
				e.serve(w, r, t)
			}
		default:
			e.serve(w, r, t)
		}
	})
}

// finds reports whether the sandbox of a target runs, as far as this server knows: it may not have heard of it yet, and only the server that leads
// wakes one. One that it does find is served here, whoever leads: its node knows whether it has it.
func (e *Edge) finds(r *http.Request, t target) bool {
	if t.signed {
		_, err := e.bySignature(r)
		return err == nil
	}
	id, err := api.ParseSandboxID(t.id)
	if err != nil {
		return true // it is refused anywhere
	}
	_, err = e.cfg.Sandboxes.Find(id)
	return err == nil
}

// target is what a request is for.
type target struct {
	id     string // as the client wrote it
	port   int
	signed bool // the id is in the signature, or nowhere
}

// passage is one request on its way.
type passage struct {
	box   Sandbox
	port  int
	letIn bool // by Envd's caller: envd is shown the sandbox's own token
	body  io.Reader
}

type passageKey struct{}

func (e *Edge) serve(w http.ResponseWriter, r *http.Request, t target) {
	if t.port == EnvdPort || t.signed {
		if cors(w, r) {
			return
		}
	}
	box, ok := e.admit(w, r, t)
	for ok && e.leaving(box.ID) {
		// It was found just before it began to move to another node: who moves it may not have seen this request, which waits as others do.
		e.current.leave(box.ID)
		box, ok = e.admit(w, r, t)
	}
	if ok {
		e.pass(w, r, passage{box: box, port: t.port})
	}
}

// Envd passes a request on to the envd of a sandbox that runs or wakes. The caller has let it in, whatever tokens it has, and has made its path
// one of envd's. api.UserHeader names the user: the credentials of the request may be where the contract has it.
func (e *Edge) Envd(w http.ResponseWriter, r *http.Request, id api.SandboxID) error {
	for {
		box, err := e.cfg.Sandboxes.Find(id)
		if errors.Is(err, ErrPaused) {
			box, err = e.wakeUp(r.Context(), id)
		}
		if err != nil {
			return err
		}
		if !e.enter(w, r, box, EnvdPort) {
			return nil
		}
		if !e.leaving(id) {
			e.pass(w, r, passage{box: box, port: EnvdPort, letIn: true})
			return nil
		}
		e.current.leave(id) // as in serve
	}
}

// pass carries a request that has been entered in the traffic.
func (e *Edge) pass(w http.ResponseWriter, r *http.Request, p passage) {
	defer e.current.leave(p.box.ID)
	// A stream lives as long as both sides want it to.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Time{})
	p.body = r.Body
	whole := false // else the proxy has broken the answer off
	w, giveBack := Lend(w, r)
	defer func() { giveBack(whole) }()
	e.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), passageKey{}, p)))
	whole = true
}

// admit finds the sandbox of a request that may reach it, and enters the request in the traffic. What may not is answered.
func (e *Edge) admit(w http.ResponseWriter, r *http.Request, t target) (Sandbox, bool) {
	box, err := e.find(r, t)
	if err != nil {
		e.refuse(w, r, t, err)
		return box, false
	}
	if t.port != EnvdPort && box.TrafficToken != "" && !sameToken(r.Header.Get(trafficHeader), box.TrafficToken) {
		e.denied(r, Denial{box, t.port, http.StatusForbidden, "traffic token"})
		writePage(w, r, http.StatusForbidden, gone{SandboxID: string(box.ID), Message: "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing or invalid", Code: http.StatusForbidden})
		return box, false
	}
	if box.Suspended && (t.port == EnvdPort || t.signed) && r.Method != http.MethodGet && r.Method != http.MethodHead {
		e.denied(r, Denial{box, t.port, http.StatusForbidden, api.CodeSuspended})
		writeError(w, http.StatusForbidden, "the tenant of this sandbox is suspended: it may be looked at, and no more")
		return box, false
	}
	if to := redirect(r, box, t); to != "" {
		w.Header().Set("Location", to)
		w.Header().Set("Preference-Applied", preferRedirect)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return box, false
	}
	return box, e.enter(w, r, box, t.port)
}

// enter enters a request in the traffic of a sandbox, or answers that there is too much of it.
func (e *Edge) enter(w http.ResponseWriter, r *http.Request, box Sandbox, port int) bool {
	if e.current.enter(box.ID, e.cfg.MaxConnections) {
		return true
	}
	e.denied(r, Denial{box, port, http.StatusTooManyRequests, "connections"})
	w.Header().Set("Retry-After", "1")
	writeError(w, http.StatusTooManyRequests, "too many connections to this sandbox: at most "+strconv.Itoa(e.cfg.MaxConnections))
	return false
}

// leaving reports whether a sandbox that was found running is on its way to another node by now, or is paused.
func (e *Edge) leaving(id api.SandboxID) bool {
	_, err := e.cfg.Sandboxes.Find(id)
	return errors.Is(err, ErrPaused)
}

func (e *Edge) denied(r *http.Request, d Denial) {
	if e.cfg.Denied != nil {
		e.cfg.Denied(r, d)
	}
}

// find returns the sandbox of a target, and checks a signature that only the edge can check.
func (e *Edge) find(r *http.Request, t target) (Sandbox, error) {
	if t.signed {
		return e.bySignature(r)
	}
	id, err := api.ParseSandboxID(t.id)
	if err != nil {
		return Sandbox{}, ErrNotFound
	}
	box, err := e.cfg.Sandboxes.Find(id)
	if errors.Is(err, ErrPaused) {
		box, err = e.wake(r, box, t.port)
	}
	if err != nil || t.port != EnvdPort {
		return box, err
	}
	return box, e.checkLink(r, box)
}

// wake resumes a paused sandbox for a request that would be let in: a stranger's knock wakes nobody whose ports are private.
func (e *Edge) wake(r *http.Request, box Sandbox, port int) (Sandbox, error) {
	if port != EnvdPort && box.TrafficToken != "" && !sameToken(r.Header.Get(trafficHeader), box.TrafficToken) {
		return box, nil // serve refuses it
	}
	if port == EnvdPort && !e.knownToEnvd(r, box) {
		return box, fmt.Errorf("%w: %s is paused, and nothing shows that this may wake it", ErrNotFound, box.ID)
	}
	return e.wakeUp(r.Context(), box.ID)
}

func (e *Edge) wakeUp(ctx context.Context, id api.SandboxID) (Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	for {
		box, err := e.cfg.Sandboxes.Wake(ctx, id)
		if !errors.Is(err, ErrPaused) || ctx.Err() != nil { // else it began to move again
			return box, err
		}
	}
}
