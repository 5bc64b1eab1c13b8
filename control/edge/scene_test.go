package edge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// world is sandboxes whose ports are a handler of the test's.
type world struct {
	box  Sandbox
	gone bool

	mu     sync.Mutex
	paused bool
	woken  int
	wakes  int            // how many it takes until it runs
	refuse error          // of Wake
	found  func(w *world) // after a Find; nil: nothing

	addr map[int]string // listeners by port; others are closed
	envd http.RoundTripper
	node string // address of the node's API
}

func (w *world) Find(id api.SandboxID) (Sandbox, error) {
	if w.gone || id != w.box.ID {
		return Sandbox{}, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	b := w.box
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paused {
		return b, fmt.Errorf("%w: %s", ErrPaused, id)
	}
	b.Node = w
	if w.found != nil {
		w.found(w)
	}
	return b, nil
}

func (w *world) Each(f func(Sandbox) bool) {
	if !w.gone {
		f(w.box)
	}
}

func (w *world) Wake(context.Context, api.SandboxID) (Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return Sandbox{}, w.refuse
	}
	w.woken++
	if w.paused = w.woken < w.wakes; w.paused {
		return Sandbox{}, fmt.Errorf("%w: %s", ErrPaused, w.box.ID)
	}
	b := w.box
	b.Node = w
	return b, nil
}

func (w *world) DialPort(ctx context.Context, _ api.SandboxID, port int) (net.Conn, error) {
	addr, ok := w.addr[port]
	if !ok {
		return nil, fmt.Errorf("%w: %d", ErrPortClosed, port)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (w *world) URL() string { return w.node }

func (w *world) Envd(api.SandboxID) (http.RoundTripper, string) { return w.envd, "/prefix" }

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// scene is an edge on a port, before a sandbox with a server of the test's on port 3000.
type scene struct {
	*world
	url  string
	addr string
}

func newScene(t *testing.T, inner http.HandlerFunc, change func(*Config)) *scene {
	t.Helper()
	in := httptest.NewServer(inner)
	t.Cleanup(in.Close)
	w := &world{box: Sandbox{ID: boxID, EnvdToken: token}, addr: map[int]string{3000: in.Listener.Addr().String()}}
	w.envd = tripper(func(r *http.Request) (*http.Response, error) {
		rec := httptest.NewRecorder()
		fmt.Fprintf(rec, "envd %s authorized=%q forged=%q", r.URL.Path, r.Header.Get(AuthorizedHeader), r.Header.Get("Soulbox-Forged"))
		return rec.Result(), nil
	})
	cfg := Config{Sandboxes: w}
	if change != nil {
		change(&cfg)
	}
	e := New(cfg)
	t.Cleanup(e.Close)
	out := httptest.NewUnstartedServer(e.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "api") })))
	out.Config.Protocols = new(http.Protocols)
	out.Config.Protocols.SetHTTP1(true)
	out.Config.Protocols.SetUnencryptedHTTP2(true)
	out.Start()
	t.Cleanup(out.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return &scene{w, out.URL, out.Listener.Addr().String()}
}

func (s *scene) get(t *testing.T, port int, path string, headers ...string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+path, nil)
	must.NoError(t, err)
	if port != 0 {
		r.Header.Set(idHeader, string(boxID))
		r.Header.Set(portHeader, fmt.Sprint(port))
	}
	for i := 0; i < len(headers); i += 2 {
		if r.Header.Set(headers[i], headers[i+1]); headers[i] == "Host" {
			r.Host = headers[i+1]
		}
	}
	resp, err := http.DefaultClient.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.StatusCode, string(b), resp.Header
}

func echoHeaders(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "host=%s xff=%s", r.Host, r.Header.Get("X-Forwarded-For"))
	for name := range r.Header {
		if strings.HasPrefix(name, "Soulbox") || strings.HasPrefix(name, "E2b") {
			fmt.Fprintf(w, " %s", name)
		}
	}
}

// raw sends bytes and returns the status of the first answer.
func (s *scene) raw(t *testing.T, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	must.NoError(t, err)
	defer c.Close()
	must.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(c, request)
	must.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	must.NoError(t, err)
	_, rest, _ := strings.Cut(line, " ")
	status, _, _ := strings.Cut(rest, " ")
	return status
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
