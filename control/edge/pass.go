package edge

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
)

// rewrite makes the request that goes on. Hop-by-hop headers are gone already, those that name other proxies too.
func rewrite(pr *httputil.ProxyRequest) {
	p := pr.In.Context().Value(passageKey{}).(passage) //nolint:forcetypeassert // serve put it there
	pr.Out.URL.Scheme = "http"
	if p.port != EnvdPort && slices.Contains(p.box.HTTPSPorts, p.port) {
		pr.Out.URL.Scheme = "https"
	}
	pr.Out.URL.Host = strconv.Itoa(p.port) + "." + string(p.box.ID)
	pr.Out.Host = pr.In.Host
	pr.SetXForwarded()
	user := pr.In.Header.Get(api.UserHeader)
	for name := range pr.Out.Header {
		if len(name) > len(ownPrefix) && strings.EqualFold(name[:len(ownPrefix)], ownPrefix) && !slices.Contains(wishes, http.CanonicalHeaderKey(name)) {
			pr.Out.Header.Del(name)
		}
	}
	if p.port != EnvdPort {
		pr.Out.Header.Del(trafficHeader)
		pr.Out.Header.Del(idHeader)
		pr.Out.Header.Del(portHeader)
		if p.box.MaskHost != "" {
			pr.Out.Host = strings.ReplaceAll(p.box.MaskHost, "${PORT}", strconv.Itoa(p.port))
		}
		return
	}
	if linkChecked(pr.In.Context()) {
		pr.Out.Header.Set(AuthorizedHeader, "files")
	}
	if p.letIn {
		for _, name := range credentials {
			pr.Out.Header.Del(name)
		}
		pr.Out.Header.Set(envdHeader, p.box.EnvdToken)
		if user != "" {
			pr.Out.SetBasicAuth(user, "")
		}
	}
}

// wishes are the headers of our own by which every client may say how it would like something done.
var wishes = []string{"Soulbox-Offset", "Soulbox-Mode", "Soulbox-Kill-On-Disconnect"}

// credentials are the headers that have let a request in here, and are nobody's business behind.
var credentials = []string{"Authorization", "Cookie", "X-Api-Key", "X-Admin-Token", "X-Team-Id"}

// checkLength refuses a content-length that HTTP/1 would refuse. Over HTTP/2 the body ends by its frames, so the server takes
// one that it cannot read for 0, breaks the stream at the first byte, and the request may be on its way by then, without its body.
func checkLength(r *http.Request) error {
	lengths := r.Header["Content-Length"]
	if r.ProtoMajor < 2 || len(lengths) == 0 {
		return nil // the server took it off and checked it
	}
	n, err := strconv.ParseUint(lengths[0], 10, 63)
	if err != nil || len(lengths) > 1 || (r.ContentLength >= 0 && uint64(r.ContentLength) != n) {
		return fmt.Errorf("content-length %q: must be one decimal number", strings.Join(lengths, ", "))
	}
	return nil
}

// ownPrefix begins the headers that only the edge may send to a node.
const ownPrefix = "Soulbox-"

// AuthorizedHeader tells envd that the edge has checked a link of ours, and for what it is good.
const AuthorizedHeader = "Soulbox-Authorized"

// transport carries a request to envd or to the port.
type transport struct{ e *Edge }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	p := r.Context().Value(passageKey{}).(passage) //nolint:forcetypeassert // serve put it there
	switch {
	case p.port != EnvdPort && isGRPC(r):
		return t.e.grpc.RoundTrip(r)
	case p.port != EnvdPort:
		return t.e.ports.RoundTrip(r)
	}
	rt, prefix := p.box.Node.Envd(p.box.ID)
	out := *r.URL
	out.Host = "node"
	out.Path = prefix + out.Path
	if out.RawPath != "" {
		out.RawPath = prefix + out.RawPath
	}
	r.URL = &out
	resp, err := rt.RoundTrip(r)
	// The node answers for envd: a refusal there is ours. One of another port is the sandbox's own affair.
	if err == nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) {
		t.e.denied(r, Denial{p.box, p.port, resp.StatusCode, "envd"})
	}
	return resp, err
}

// dialPort connects a request to its port, where it was found to be: it counts in the sandbox's traffic, so whoever moves the sandbox waits for it, and
// has recorded already that it leaves, perhaps. The address "<port>.<id>:80" (or 443) is the name by which the transport keeps connections apart.
func (e *Edge) dialPort(ctx context.Context, _, addr string) (net.Conn, error) {
	p, ok := ctx.Value(passageKey{}).(passage)
	if !ok {
		return nil, fmt.Errorf("dial %q: for no request", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return p.box.Node.DialPort(ctx, p.box.ID, p.port)
}

// dialTLS speaks TLS over what dial connects to. Who the server is, the way to it says, which is ours: its certificate, which it has most often made itself, is
// not looked at, as the contract has it. It is sent no name, since it knows none of ours.
func dialTLS(dial func(context.Context, string, string) (net.Conn, error), protocol string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("TLS with the port: %w", err), conn.Close())
		}
		return secure, nil
	}
}

// failed answers where nothing came back.
func (e *Edge) failed(w http.ResponseWriter, r *http.Request, err error) {
	p := r.Context().Value(passageKey{}).(passage) //nolint:forcetypeassert // serve put it there
	if r.Context().Err() == nil {
		e.cfg.Logger.Debug("request to a sandbox failed", "sandbox", p.box.ID, "port", p.port, "error", err)
	}
	if b, ok := p.body.(faulty); ok && b.Fault() != nil { // which has ended the context, so that err says no more than that
		err = b.Fault()
	}
	var bad *url.Error
	if errors.As(err, &bad) {
		err = bad.Err
	}
	e.refuse(w, r, target{id: string(p.box.ID), port: p.port}, err)
}

// faulty is a body that knows why it ended early: an *api.Error, or nil where it did not.
type faulty interface{ Fault() error }

// refuse answers for a target that cannot be reached.
func (e *Edge) refuse(w http.ResponseWriter, r *http.Request, t target, err error) {
	g := gone{SandboxID: t.id, Code: http.StatusBadGateway}
	var denied *denial
	var known *api.Error
	switch {
	case errors.As(err, &denied):
		if denied.status != http.StatusServiceUnavailable {
			e.denied(r, Denial{e.known(t.id), t.port, denied.status, "link"})
		}
		writeError(w, denied.status, denied.message)
		return
	case errors.As(err, &known) && (known.Code == http.StatusForbidden || known.Code == http.StatusTooManyRequests):
		// It is paused, and its tenant may not have it resumed. Why is the tenant's business, not the visitor's.
		e.denied(r, Denial{e.known(t.id), t.port, known.Code, known.ErrorCode})
		g.Code, g.Message = known.Code, "The sandbox is paused and cannot be resumed now"
		writePage(w, r, known.Code, g)
		return
	case known != nil && known.Code == http.StatusRequestTimeout: // the client's own body
		writeError(w, known.Code, known.Message)
		return
	case errors.Is(err, ErrPortClosed):
		g.Message, g.Port = "The sandbox is running but port is not open", t.port
	case errors.Is(err, ErrNotFound):
		g.Message = "The sandbox was not found"
	default:
		if _, ferr := e.cfg.Sandboxes.Find(api.SandboxID(t.id)); ferr != nil {
			g.Message = "The sandbox was not found"
			break
		}
		g.Message = "The sandbox did not answer"
	}
	writePage(w, r, http.StatusBadGateway, g)
}

// known is the sandbox of an id that a client wrote, as far as there is one.
func (e *Edge) known(id string) Sandbox {
	box, err := e.cfg.Sandboxes.Find(api.SandboxID(id))
	if err != nil && !errors.Is(err, ErrPaused) {
		return Sandbox{}
	}
	return box
}

func sameToken(got, want string) bool {
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

// copyBytes is large enough that the cost of a system call does not count.
const copyBytes = 256 << 10

// buffers lends what bodies are copied through.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if v, ok := b.pool.Get().(*[copyBytes]byte); ok {
		return v[:]
	}
	return make([]byte, copyBytes)
}

func (b *buffers) Put(p []byte) { b.pool.Put((*[copyBytes]byte)(p)) }
