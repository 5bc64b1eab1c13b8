// Package forward has the control server that leads answer a request that came to another one.
//
// It owns the way there (HTTP on the connections between servers), who asks as the other server saw him, and the wait while nobody leads.
// It never sends a request twice that may have been carried out, and knows nothing of what requests mean. DESIGN.md tells more.
package forward

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Servers are the control servers; state.Server is one.
type Servers interface {
	ServerID() string
	// Leadership returns who leads and a channel that is closed with the next change.
	Leadership() (state.Leadership, <-chan struct{})
	// Verify returns once this server has proved since the call that it leads.
	Verify(ctx context.Context) error
	// Dial connects to another server for requests.
	Dial(ctx context.Context, addr string) (net.Conn, error)
	// Called answers what another server asks for itself.
	Called(w http.ResponseWriter, r *http.Request)
}

const (
	// leaderWait is how long a request waits for a server that leads.
	leaderWait = 3 * time.Second
	// oldLeaderTime is how long one that another server was to answer goes on waiting for it when it does not lead any more.
	oldLeaderTime = 2 * time.Second
	dialTime      = time.Second
	lookAgain     = 100 * time.Millisecond // at a server that could not be reached and still leads, as far as is known
	idleTime      = 90 * time.Second       // of a connection that nobody uses
	idleConns     = 64
)

// Forwarder is one server's. Make it with New.
type Forwarder struct {
	servers   Servers
	wait      time.Duration
	transport *http.Transport
	log       *log.Logger
	leaving   atomic.Bool
}

// New returns a forwarder.
func New(servers Servers, logger hclog.Logger) *Forwarder {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	f := &Forwarder{
		servers: servers, wait: leaderWait,
		log: log.New(logger.StandardWriter(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}), "", 0),
	}
	f.transport = &http.Transport{
		DialContext: f.dial, DisableCompression: true, IdleConnTimeout: idleTime, MaxIdleConns: 2 * idleConns, MaxIdleConnsPerHost: idleConns,
	}
	return f
}

// Close lets go of connections that are not in use.
func (f *Forwarder) Close() { f.transport.CloseIdleConnections() }

// Leave has requests of other servers refused, as by one that does not lead: they wait for the next. It is called before this server hands over.
func (f *Forwarder) Leave() { f.leaving.Store(true) }

// errNotSent is in the chain of errors of requests that never left.
var errNotSent = errors.New("the control server that leads cannot be reached")

// errElsewhere is the word of a server that does not lead: nothing was done.
var errElsewhere = errors.New("the control server that was asked does not lead any more")

func (f *Forwarder) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := f.servers.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, err)
	}
	return c, nil
}

// Bring brings a request to the server that leads. here says that it is this one, as it has proved since the request came, and that nothing was
// done: the caller answers. Else the request is answered, or err says why nobody does: state.ErrNoLeader is in its chain where nothing was done, and
// state.ErrUnknownOutcome where nobody knows.
func (f *Forwarder) Bring(w http.ResponseWriter, r *http.Request) (here bool, err error) {
	p := &passing{Forwarder: f, w: w, r: r}
	whole := false // else the answer was broken off
	defer func() {
		if p.giveBack != nil && !here {
			p.giveBack(whole)
		}
	}()
	here, err = p.bring()
	whole = err == nil
	return here, err
}

// passing is one request on its way.
type passing struct {
	*Forwarder
	w http.ResponseWriter
	r *http.Request
	// Once it is sent for the first time:
	giveBack func(whole bool) // what was lent for it
	body     *replay          // nil: there is none
}

// lend takes the client's body for sending it on.
func (p *passing) lend() {
	if p.giveBack != nil {
		return
	}
	p.w, p.giveBack = edge.Lend(p.w, p.r)
	if p.r.Body != nil && p.r.Body != http.NoBody {
		p.body = &replay{src: p.r.Body}
	}
}

func (p *passing) bring() (here bool, err error) {
	patience := time.NewTimer(p.wait)
	defer patience.Stop()
	last := state.ErrNoLeader
	for {
		lead, changed := p.servers.Leadership()
		own := lead.ID == p.servers.ServerID()
		var again <-chan time.Time
		switch {
		case received(p.r) != "" && (p.leaving.Load() || lead.ID != "" && !own):
			p.w.Header().Set(elsewhereHeader, received(p.r))
			return false, state.ErrNoLeader
		case lead.Here:
			if last = p.verify(); last == nil {
				if p.body != nil {
					p.r.Body = p.body.attempt()
				}
				return true, nil
			}
			again = time.After(lookAgain)
		case lead.Addr != "" && !own:
			outcome := p.send(lead)
			if outcome == nil {
				return false, nil
			}
			if p.r.Context().Err() != nil {
				return false, p.r.Context().Err()
			}
			once := p.body != nil && !p.body.again()
			switch nothingDone := errors.Is(outcome, errNotSent) || errors.Is(outcome, errElsewhere); {
			case nothingDone && once:
				return false, fmt.Errorf("%w: %w", state.ErrNoLeader, outcome)
			case nothingDone:
			case changesNothing(p.r) && !once: // it may be asked again, for as long as one that comes now
				patience.Reset(p.wait)
			default:
				return false, state.ErrUnknownOutcome
			}
			last, again = outcome, time.After(lookAgain)
		}
		select {
		case <-p.r.Context().Done():
			return false, p.r.Context().Err()
		case <-patience.C:
			return false, noLeader(p.wait, last)
		case <-changed:
		case <-again:
		}
	}
}

func (p *passing) verify() error {
	ctx, cancel := context.WithTimeout(p.r.Context(), p.wait)
	defer cancel()
	return p.servers.Verify(ctx)
}

func noLeader(waited time.Duration, last error) error {
	if errors.Is(last, state.ErrNoLeader) {
		return fmt.Errorf("%w, and no other did within %s", state.ErrNoLeader, waited)
	}
	return fmt.Errorf("%w, and none that does answered within %s", state.ErrNoLeader, waited)
}

// changesNothing reports whether a request may be carried out twice.
func changesNothing(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == ""
}

// send has the server that leads answer, or returns an error before anything was written to the client.
func (p *passing) send(lead state.Leadership) (failed error) {
	p.lend()
	ctx, cancel := context.WithCancelCause(p.r.Context())
	var begun atomic.Bool
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		p.giveUp(ctx, lead, func() {
			if !begun.Load() {
				cancel(errLost)
			}
		})
	}()
	defer func() { cancel(nil); <-watched }()
	word := rand.Text()
	proxy := &httputil.ReverseProxy{
		Transport: p.transport, FlushInterval: -1, ErrorLog: p.log, BufferPool: &buffers,
		Rewrite: func(out *httputil.ProxyRequest) { p.address(out, lead.Addr, word) },
		ModifyResponse: func(res *http.Response) error {
			if res.Header.Get(elsewhereHeader) == word {
				return errElsewhere
			}
			begun.Store(true)
			for name := range res.Header { // this server has set some of them too, for an answer of its own
				p.w.Header().Del(name)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(p.w, p.r.WithContext(ctx))
	return failed
}

// errLost is why a request to a server that does not lead any more is given up.
var errLost = errors.New("the control server that was asked does not lead any more, and is silent")

// giveUp calls lost when a server has not led for a while, unless ctx has ended by then. The server may be on its way to hand over, and at the end
// of what it was asked.
func (f *Forwarder) giveUp(ctx context.Context, lead state.Leadership, lost func()) {
	for {
		now, changed := f.servers.Leadership()
		if now.ID != "" && now.ID != lead.ID {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
	t := time.NewTimer(oldLeaderTime)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		lost()
	}
}

// address makes a request one to another server, with what this one knows of its client.
func (p *passing) address(out *httputil.ProxyRequest, addr, word string) {
	out.Out.URL.Scheme, out.Out.URL.Host, out.Out.Host = "http", addr, out.In.Host
	out.Out.URL.RawQuery = out.In.URL.RawQuery // as it came: what is wrong with it the other server says
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v := out.In.Header.Values(name); v != nil {
			out.Out.Header[name] = v
		}
	}
	introduce(out.Out.Header, out.In, word)
	if p.body == nil {
		return
	}
	out.Out.Body = p.body.attempt()
	out.Out.GetBody = func() (io.ReadCloser, error) { return p.body.attempt(), nil } // where a connection was closed before anything went out on it
}

const copyBytes = 32 << 10

// buffers are for copying answers.
var buffers pool

type pool struct{ p sync.Pool }

// Get implements httputil.BufferPool.
func (b *pool) Get() []byte {
	if v, ok := b.p.Get().(*[copyBytes]byte); ok {
		return v[:]
	}
	return make([]byte, copyBytes)
}

// Put implements httputil.BufferPool.
func (b *pool) Put(p []byte) { b.p.Put((*[copyBytes]byte)(p)) }
