package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	boxID   api.SandboxID = "iaaaaaaaaaaaaaaaaaaaa"
	otherID api.SandboxID = "ibbbbbbbbbbbbbbbbbbbb"
	token                 = "0123456789abcdef"
)

func TestRouteOf_findsTheSandboxOfARequest(t *testing.T) {
	id := string(boxID)
	for name, tc := range map[string]struct {
		host, id, port, url string
		want                target
		err                 bool
	}{
		"a name":                             {host: "3000-" + id + ".example.com", want: target{id: id, port: 3000}},
		"a name with a port":                 {host: "3000-" + id + ".example.com:7300", want: target{id: id, port: 3000}},
		"a name with an old client id":       {host: "80-" + id + "-abc.x", want: target{id: id + "-abc", port: 80}},
		"a name in capitals":                 {host: "3000-" + strings.ToUpper(id) + ".example.com", want: target{id: id, port: 3000}},
		"a name wins over headers":           {host: "3000-" + id + ".x", id: string(otherID), port: "1", want: target{id: id, port: 3000}},
		"no port in the name":                {host: "x-" + id + ".example.com"},
		"port 0":                             {host: "0-" + id + ".example.com"},
		"port 65536":                         {host: "65536-" + id + ".example.com"},
		"port +80":                           {host: "+80-" + id + ".example.com"},
		"a label alone":                      {host: "3000-" + id},
		"a plain name":                       {host: "api.example.com"},
		"headers at an address":              {host: "127.0.0.1:7300", id: id, port: "49983", want: target{id: id, port: EnvdPort}},
		"headers at an IPv6 address":         {host: "[::1]:7300", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at localhost":               {host: "localhost", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at sandbox.":                {host: "sandbox.example.com", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at another name":            {host: "api.example.com", id: id, port: "1"},
		"one header":                         {host: "localhost", id: id, err: true},
		"the other header":                   {host: "localhost", port: "1", err: true},
		"a header port that is none":         {host: "localhost", id: id, port: "http", err: true},
		"a signed link":                      {host: "localhost", url: "/files?path=a&signature=v1_x", want: target{port: EnvdPort, signed: true}},
		"a signature elsewhere":              {host: "localhost", url: "/v1/nodes?signature=x"},
		"a file without a signature":         {host: "localhost", url: "/files?path=a"},
		"a signed link with headers":         {host: "localhost", id: id, port: "49983", url: "/files?signature=x", want: target{id: id, port: EnvdPort}},
		"a request for the API":              {host: "localhost", url: "/v2/sandboxes"},
		"a label longer than a label can be": {host: "1-" + strings.Repeat("a", 200) + ".x"},
	} {
		t.Run(name, func(t *testing.T) {
			url := tc.url
			if url == "" {
				url = "/"
			}
			r := httptest.NewRequest(http.MethodGet, url, nil)
			r.Host = tc.host
			if tc.id != "" {
				r.Header.Set(idHeader, tc.id)
			}
			if tc.port != "" {
				r.Header.Set(portHeader, tc.port)
			}
			got, err := routeOf(r)
			must.Eq(t, tc.err, err != nil)
			must.Eq(t, tc.want, got)
		})
	}
}

func FuzzRouteOf(f *testing.F) {
	f.Add("3000-iaaaaaaaaaaaaaaaaaaaa.example.com", "", "", "/files")
	f.Add("localhost", "x", "1", "/")
	f.Add("[::1]:80", "", "65535", "/")
	f.Fuzz(func(t *testing.T, host, id, port, path string) {
		r := &http.Request{Host: host, Header: http.Header{}, URL: httptest.NewRequest(http.MethodGet, "/", nil).URL}
		r.URL.Path = path
		r.Header.Set(idHeader, id)
		r.Header.Set(portHeader, port)
		got, err := routeOf(r)
		if err == nil && got.id != "" && (got.port < 1 || got.port > 65535) {
			t.Fatalf("port %d", got.port)
		}
	})
}

// world is sandboxes whose ports are a handler of the test's.
type world struct {
	box  Sandbox
	gone bool

	mu     sync.Mutex
	paused bool
	woken  int
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
	w.paused = false
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

func TestServe_answersAsTheContractDoes(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	status, body, _ := s.get(t, 0, "/v2/sandboxes")
	must.Eq(t, 200, status)
	must.Eq(t, "api", body)

	status, body, _ = s.get(t, 4000, "/")
	must.Eq(t, 502, status)
	must.Eq(t, `{"sandboxId":"iaaaaaaaaaaaaaaaaaaaa","message":"The sandbox is running but port is not open","code":502,"port":4000}`, body)

	_, body, h := s.get(t, 4000, "/", "Accept", "text/html", "User-Agent", "Mozilla/5.0")
	must.StrContains(t, h.Get("Content-Type"), "text/html")
	must.StrContains(t, body, "port is not open")

	s.gone = true
	for _, port := range []int{3000, EnvdPort} {
		status, body, _ = s.get(t, port, "/health")
		must.Eq(t, 502, status)
		must.Eq(t, `{"sandboxId":"iaaaaaaaaaaaaaaaaaaaa","message":"The sandbox was not found","code":502}`, body)
	}
	_, body, _ = s.get(t, 0, "/", "Host", "3000-<script>.example.com", "Accept", "text/html", "User-Agent", "Mozilla/5.0")
	must.StrNotContains(t, body, "<script>")
}

func TestServe_passesOnWhatAClientMaySay(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	_, body, _ := s.get(t, 3000, "/", AuthorizedHeader, "files", "Soulbox-Other", "1", "X-Forwarded-For", "6.6.6.6", trafficHeader, "x")
	must.Eq(t, "host="+s.addr+" xff=127.0.0.1", body)
	name := "3000-" + string(boxID) + ".example.com"
	_, body, _ = s.get(t, 0, "/", "Host", name)
	must.StrHasPrefix(t, "host="+name+" ", body)
	s.box.MaskHost = "localhost:${PORT}"
	_, body, _ = s.get(t, 3000, "/")
	must.StrHasPrefix(t, "host=localhost:3000 ", body)
	_, body, _ = s.get(t, EnvdPort, "/health", AuthorizedHeader, "files", "Soulbox-Forged", "1", "Connection", "Soulbox-Authorized")
	must.Eq(t, `envd /prefix/health authorized="" forged=""`, body)
}

func TestServe_privatePortsNeedTheirToken(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	s.box.TrafficToken = "secret"
	for got, want := range map[string]int{"": 403, "wrong": 403, "secret": 200} {
		status, _, _ := s.get(t, 3000, "/", trafficHeader, got)
		must.Eq(t, want, status, must.Sprint(got))
	}
	status, _, _ := s.get(t, EnvdPort, "/health")
	must.Eq(t, 200, status, must.Sprint("envd has a token of its own"))
}

func TestServe_boundsTheRequestsToOneSandbox(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{}, 2)
	s := newScene(t, func(http.ResponseWriter, *http.Request) { held <- struct{}{}; <-hold }, func(c *Config) { c.MaxConnections = 2 })
	done := make(chan struct{}, 2)
	for range 2 {
		go func() { s.get(t, 3000, "/"); done <- struct{}{} }()
		<-held
	}
	status, _, h := s.get(t, 3000, "/")
	must.Eq(t, 429, status)
	must.Eq(t, "1", h.Get("Retry-After"))
	close(hold)
	<-done
	<-done
	status, _, _ = s.get(t, 3000, "/")
	must.Eq(t, 200, status)
}

func TestServe_streamsAsItComes(t *testing.T) {
	next := make(chan struct{})
	s := newScene(t, func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "%d\n", i)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
			}
		}
	}, nil)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url, nil)
	must.NoError(t, err)
	r.Host = "3000-" + string(boxID) + ".x"
	resp, err := http.DefaultClient.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := lines.ReadString('\n')
		must.NoError(t, err)
		must.Eq(t, fmt.Sprintf("%d\n", i), line)
		next <- struct{}{}
	}
}

func TestServe_whoLeavesEndsTheRequestInside(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	s := newScene(t, func(_ http.ResponseWriter, r *http.Request) { close(began); <-r.Context().Done(); close(ended) }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	must.NoError(t, err)
	r.Host = "3000-" + string(boxID) + ".x"
	failed := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			err = errors.Join(errors.New("answered"), resp.Body.Close())
		}
		failed <- err
	}()
	<-began
	cancel()
	must.ErrorIs(t, <-failed, context.Canceled)
	<-ended
}

type verifier map[string]api.SandboxID // by signature

func (v verifier) Verify(r *http.Request) (api.SandboxID, error) {
	id, ok := v[r.URL.Query().Get("signature")]
	if !ok {
		return "", errors.New("no such link")
	}
	return id, nil
}

func TestLinks_findTheirSandboxAndAreCheckedOnce(t *testing.T) {
	s := newScene(t, echoHeaders, func(c *Config) { c.Links = verifier{"v2.good": boxID, "v2.other": otherID} })
	later, past := fmt.Sprint(time.Now().Add(time.Hour).Unix()), "1"
	good := Sign(token, "a b", "read", "", later)
	for name, tc := range map[string]struct {
		query  string
		port   int
		status int
		body   string
	}{
		"the contract's":             {"path=a+b&signature_expiration=" + later + "&signature=" + escape(good), 0, 200, `envd /prefix/files authorized="" forged=""`},
		"without an expiry":          {"path=x&signature=" + escape(Sign(token, "x", "read", "", "")), 0, 200, `envd /prefix/files authorized="" forged=""`},
		"another path":               {"path=b&signature_expiration=" + later + "&signature=" + escape(good), 0, 401, "invalid signature"},
		"another user":               {"path=a+b&username=root&signature_expiration=" + later + "&signature=" + escape(good), 0, 401, "invalid signature"},
		"its expiry taken off":       {"path=a+b&signature=" + escape(good), 0, 401, "invalid signature"},
		"expired":                    {"path=a&signature_expiration=" + past + "&signature=" + escape(Sign(token, "a", "read", "", past)), 0, 401, "already expired"},
		"an expiry that is none":     {"path=a&signature_expiration=soon&signature=x", 0, 401, "already expired"},
		"one to write":               {"path=a&signature=" + escape(Sign(token, "a", "write", "", "")), 0, 401, "invalid signature"},
		"of ours":                    {"path=a&signature=v2.good", 0, 200, `envd /prefix/files authorized="files" forged=""`},
		"of ours, doctored":          {"path=a&signature=v2.bad", 0, 403, "no such link"},
		"of ours, with its name":     {"path=a&signature=v2.good", EnvdPort, 200, `envd /prefix/files authorized="files" forged=""`},
		"of ours, with another name": {"path=a&signature=v2.other", EnvdPort, 403, "another sandbox"},
		"of ours, for one not here":  {"path=a&signature=v2.other", 0, 502, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			status, body, _ := s.get(t, tc.port, "/files?"+tc.query)
			must.Eq(t, tc.status, status, must.Sprint(body))
			must.StrContains(t, body, tc.body)
		})
	}
}

func escape(s string) string { return strings.NewReplacer("+", "%2B", "/", "%2F").Replace(s) }

func TestCORS_preflightsOfEnvdAreAnswered(t *testing.T) {
	s := newScene(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Inner", r.Method) }, nil)
	ask := func(port int) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, s.url+"/files", nil)
		must.NoError(t, err)
		r.Host = fmt.Sprintf("%d-%s.x", port, boxID)
		r.Header.Set("Access-Control-Request-Method", "POST")
		r.Header.Set("Access-Control-Request-Headers", "x-access-token")
		resp, err := http.DefaultClient.Do(r)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		return resp
	}
	envd := ask(EnvdPort)
	must.Eq(t, 204, envd.StatusCode)
	must.Eq(t, "*", envd.Header.Get("Access-Control-Allow-Origin"))
	must.Eq(t, "x-access-token", envd.Header.Get("Access-Control-Allow-Headers"))
	must.Eq(t, "OPTIONS", ask(3000).Header.Get("X-Inner"), must.Sprint("what a server inside allows is its own business"))
}

// What two parsers could read differently does not pass, or passes as one request only.
func TestServe_refusesSmuggling(t *testing.T) {
	var inside []string
	seen := make(chan string, 16)
	s := newScene(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- r.Method + " " + r.URL.Path + " " + string(b)
	}, nil)
	host := "Host: 3000-" + string(boxID) + ".x\r\n"
	for name, raw := range map[string]string{
		"two lengths":             "POST /a HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
		"an odd encoding":         "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"two encodings":           "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"a space before a colon":  "POST /a HTTP/1.1\r\n" + host + "Content-Length : 3\r\n\r\nabc",
		"a negative length":       "POST /a HTTP/1.1\r\n" + host + "Content-Length: -3\r\n\r\nabc",
		"two hosts":               "GET /a HTTP/1.1\r\n" + host + "Host: localhost\r\n\r\n",
		"a NUL in a header":       "GET /a HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n",
		"chunks of a length 2^64": "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nabc\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			status := s.raw(t, raw)
			must.StrContains(t, "400 501 502", status, must.Sprint(raw))
		})
	}
	// A length beside chunks: the length does not count, and is not passed on (RFC 9112, 6.3).
	must.Eq(t, "200", s.raw(t, "POST /b HTTP/1.1\r\n"+host+"Content-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	// A folded header is one header, with a space for the fold (RFC 9112, 5.2): no length comes of it.
	must.Eq(t, "200", s.raw(t, "POST /c HTTP/1.1\r\n"+host+"X: a\r\n\tContent-Length: 3\r\n\r\nabc"))
	close(seen)
	for v := range seen {
		inside = append(inside, v)
	}
	for _, v := range inside {
		must.StrNotContains(t, v, "smuggled")
	}
	must.SliceContains(t, inside, "POST /b ")
	must.SliceContains(t, inside, "POST /c ")
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

func TestEdge_tellsWhomItDoesNotLetIn(t *testing.T) {
	var mu sync.Mutex
	var told []Denial
	s := newScene(t, echoHeaders, func(c *Config) {
		c.Denied = func(_ *http.Request, d Denial) {
			mu.Lock()
			defer mu.Unlock()
			d.Sandbox.Node = nil
			told = append(told, d)
		}
	})
	s.box.TrafficToken, s.box.Tenant = "secret", "acme"
	want := s.box
	status, _, _ := s.get(t, 3000, "/")
	must.Eq(t, http.StatusForbidden, status)
	status, _, _ = s.get(t, 3000, "/", trafficHeader, "wrong")
	must.Eq(t, http.StatusForbidden, status)
	status, _, _ = s.get(t, 3000, "/", trafficHeader, "secret")
	must.Eq(t, http.StatusOK, status)
	status, _, _ = s.get(t, EnvdPort, "/files?path=/x&signature="+linkPrefix+"1.x")
	must.Eq(t, http.StatusForbidden, status)
	must.Eq(t, []Denial{{want, 3000, 403, "traffic token"}, {want, 3000, 403, "traffic token"}, {want, EnvdPort, 403, "link"}}, told)
	told = nil
	s.envd = tripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusUnauthorized, Body: http.NoBody}, nil
	})
	status, _, _ = s.get(t, EnvdPort, "/files?path=/x")
	must.Eq(t, http.StatusUnauthorized, status)
	must.Eq(t, []Denial{{want, EnvdPort, 401, "envd"}}, told)
	told = nil
	s.paused = true
	s.refuse = api.Errorf(http.StatusTooManyRequests, api.CodeQuota, "quota of tenant acme")
	status, body, _ := s.get(t, 3000, "/", trafficHeader, "secret")
	must.Eq(t, http.StatusTooManyRequests, status)
	must.StrNotContains(t, body, "acme")
	must.Eq(t, []Denial{{want, 3000, 429, api.CodeQuota}}, told)
}

func TestEdge_wakesThePausedForTraffic(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	s.paused = true
	status, body, _ := s.get(t, 3000, "/")
	must.Eq(t, http.StatusOK, status, must.Sprint(body))
	must.Eq(t, 1, s.woken)
	status, _, _ = s.get(t, 3000, "/")
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, 1, s.woken, must.Sprint("one that runs is left alone"))
}

func TestEdge_strangersWakeNobodyWhosePortsArePrivate(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	s.box.TrafficToken = "secret"
	s.paused = true
	status, _, _ := s.get(t, 3000, "/")
	must.Eq(t, http.StatusForbidden, status)
	must.Eq(t, 0, s.woken)
	status, _, _ = s.get(t, 3000, "/", trafficHeader, "secret")
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, 1, s.woken)
}

func TestEdge_strangersWakeNobodyThroughEnvd(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	s.paused = true
	for name, header := range map[string][]string{"without a token": nil, "with another": {envdHeader, "guess"}} {
		status, body, _ := s.get(t, EnvdPort, "/files?path=/x&signature=v1_guess", header...)
		must.Eq(t, http.StatusBadGateway, status, must.Sprint(name))
		must.StrContains(t, body, "not found", must.Sprint(name))
		must.Eq(t, 0, s.woken, must.Sprint(name))
	}
	_, _, _ = s.get(t, EnvdPort, "/files?path=/x", envdHeader, token)
	must.Eq(t, 1, s.woken, must.Sprint("its owner does"))
	s.paused = true
	_, _, _ = s.get(t, EnvdPort, "/files?path=/x&signature="+url.QueryEscape(Sign(token, "/x", "read", "", "")))
	must.Eq(t, 2, s.woken, must.Sprint("and whoever has a link of his"))
}

func TestServe_answersThatBeginBeforeTheBodyEnds(t *testing.T) {
	s := newScene(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_, _ = io.WriteString(w, "begun ")
		_ = rc.Flush()
		b, err := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %v", b, err)
	}, nil)
	body, say := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, body)
	must.NoError(t, err)
	r.Host, r.ContentLength = "3000-"+string(boxID)+".x", 8
	go func() { _, _ = io.WriteString(say, "four") }()
	resp, err := http.DefaultClient.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	begun := make([]byte, 6)
	_, err = io.ReadFull(resp.Body, begun)
	must.NoError(t, err)
	_, err = io.WriteString(say, "more")
	must.NoError(t, err)
	must.NoError(t, say.Close())
	rest, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, "begun fourmore <nil>", string(begun)+string(rest))
}

func TestServe_aSuspendedTenantMayLookAndNoMore(t *testing.T) {
	var denied []Denial
	s := newScene(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "port") }, func(c *Config) {
		c.Denied = func(_ *http.Request, d Denial) { denied = append(denied, d) }
	})
	s.box.Suspended = true
	do := func(method string, port int) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), method, s.url+"/files?path=a", strings.NewReader("x"))
		must.NoError(t, err)
		r.Header.Set(idHeader, string(boxID))
		r.Header.Set(portHeader, fmt.Sprint(port))
		resp, err := http.DefaultClient.Do(r)
		must.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	status, body := do(http.MethodGet, EnvdPort)
	must.Eq(t, 200, status)
	must.StrContains(t, body, "envd /prefix/files")
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		status, body = do(method, EnvdPort)
		must.Eq(t, 403, status)
		must.StrContains(t, body, "suspended")
	}
	must.Eq(t, 3, len(denied))
	must.Eq(t, api.CodeSuspended, denied[0].Why)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		status, _ = do(method, 3000)
		must.Eq(t, 200, status, must.Sprint("what runs goes on for those whom it serves"))
	}
}

// A server inside may answer, and the request be over, while its body is being passed on yet: the connection it came on is not read by two.
func TestServe_anAnswerBeforeTheBodyWasReadLeavesTheConnectionWhole(t *testing.T) {
	var logged strings.Builder
	var mu sync.Mutex
	in := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "early") }))
	t.Cleanup(in.Close)
	w := &world{box: Sandbox{ID: boxID, EnvdToken: token}, addr: map[int]string{3000: in.Listener.Addr().String()}}
	w.envd = tripper(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			go func() { _, _ = r.Body.Read(make([]byte, 1)) }() // as a transport does that passes a body on
		}
		rec := httptest.NewRecorder()
		fmt.Fprint(rec, "early")
		return rec.Result(), nil
	})
	e := New(Config{Sandboxes: w})
	t.Cleanup(e.Close)
	out := httptest.NewUnstartedServer(e.Wrap(http.NotFoundHandler()))
	out.Config.ErrorLog = log.New(writerFunc(func(b []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(b)
	}), "", 0)
	out.Start()
	t.Cleanup(out.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 100 {
				port := 3000
				if (n+i)%2 == 0 {
					port = EnvdPort
				}
				body := strings.NewReader(strings.Repeat("x", i*31))
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, out.URL+"/", body) // which is repeated where a connection was closed meanwhile
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set(idHeader, string(boxID))
				r.Header.Set(portHeader, fmt.Sprint(port))
				r.Header.Set("Idempotency-Key", fmt.Sprint(n, i))
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				b, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 || string(b) != "early" {
					t.Errorf("%d %q", resp.StatusCode, b)
				}
			}
		})
	}
	wg.Wait()
	out.Close()
	mu.Lock()
	defer mu.Unlock()
	must.StrNotContains(t, logged.String(), "panic")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// It begins to move between the moment when a request finds it and the one when the request is under way.
func TestServe_aRequestThatMeetsAMoveWaitsForItsEnd(t *testing.T) {
	s := newScene(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "answered") }, nil)
	finds := 0
	s.found = func(w *world) {
		if finds++; finds == 1 {
			w.paused = true
		}
	}
	status, body, _ := s.get(t, 3000, "/")
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, "answered", body)
	must.Eq(t, 1, s.woken, must.Sprint("it waited, and was passed on once"))
}
