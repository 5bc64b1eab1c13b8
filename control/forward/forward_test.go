package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// servers is a cluster as one of its servers sees it.
type servers struct {
	id string

	mu      sync.Mutex
	now     state.Leadership
	changed chan struct{}
	verify  error
}

func (s *servers) ServerID() string { return s.id }

func (s *servers) Leadership() (state.Leadership, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

func (s *servers) Verify(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verify
}

func (s *servers) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func (s *servers) Called(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "a server asked for %s", r.URL.Path)
}

func (s *servers) elect(id, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = state.Leadership{ID: id, Addr: addr, Here: id == s.id}
	close(s.changed)
	s.changed = make(chan struct{})
}

// server is one of a cluster: it answers with handler when it leads.
type server struct {
	*servers
	*Forwarder
	public, others *httptest.Server
	errs           chan error // of requests that nobody answered
}

func start(t *testing.T, id string, handler http.HandlerFunc) *server {
	t.Helper()
	s := &server{servers: &servers{id: id, changed: make(chan struct{})}, errs: make(chan error, 100)}
	s.Forwarder = New(s.servers, nil)
	s.wait = 500 * time.Millisecond
	whole := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Each", "once")
		here, err := s.Bring(w, r)
		switch {
		case err != nil:
			s.errs <- err
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		case here:
			handler(w, r)
		}
	})
	s.public = httptest.NewServer(whole)
	s.others = httptest.NewServer(s.Receive(whole))
	t.Cleanup(func() {
		s.public.Close()
		s.Forwarder.Close()
		s.others.Close()
	})
	return s
}

func (s *server) addr() string { return s.others.Listener.Addr().String() }

// elected has all servers know that one leads.
func elected(lead *server, all ...*server) {
	for _, s := range append(all, lead) {
		s.elect(lead.id, lead.addr())
	}
}

func ask(t *testing.T, s *server, method, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, s.public.URL+"/a%2Fb?x=1;2", r)
	must.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	must.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must.NoError(t, err)
	return res.StatusCode, string(b), res.Header
}

func never(http.ResponseWriter, *http.Request) { panic("asked") }

func TestBring_leaderSeesTheClientsOwnRequest(t *testing.T) {
	var seen *http.Request
	lead := start(t, "a", func(w http.ResponseWriter, r *http.Request) {
		seen = r
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-End")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(b)
		w.Header().Set("X-End", "whole")
	})
	other := start(t, "b", never)
	elected(lead, other)
	status, body, header := ask(t, other, "POST", "hello", "X-Forwarded-For", "1.2.3.4", "Idempotency-Key", "k",
		sourceHeader, "9.9.9.9:9", tlsHeader, "true", certificateHeader, "AAAA", wordHeader, "w")
	must.Eq(t, http.StatusTeapot, status)
	must.Eq(t, "hello", body)
	must.Eq(t, []string{"once"}, header.Values("X-Each"))
	must.StrHasPrefix(t, "127.0.0.1:", seen.RemoteAddr)
	must.Nil(t, seen.TLS)
	must.Eq(t, other.public.Listener.Addr().String(), seen.Host)
	must.Eq(t, "/a%2Fb?x=1;2", seen.RequestURI)
	must.Eq(t, "1.2.3.4", seen.Header.Get("X-Forwarded-For"))
	must.Eq(t, "k", seen.Header.Get("Idempotency-Key"))
	for name := range seen.Header {
		must.StrNotContains(t, name, "Soulbox-Server")
	}
}

func TestMeet_bringsTheClientsCertificate(t *testing.T) {
	made := httptest.NewTLSServer(nil)
	defer made.Close()
	client := httptest.NewRequest("GET", "/", nil)
	client.RemoteAddr = "192.0.2.1:99"
	client.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{made.Certificate()}}
	sent := httptest.NewRequest("GET", "/", nil)
	introduce(sent.Header, client, "word")
	got, err := meet(sent)
	must.NoError(t, err)
	must.Eq(t, "192.0.2.1:99", got.RemoteAddr)
	must.True(t, got.TLS.PeerCertificates[0].Equal(made.Certificate()))
	_, err = meet(httptest.NewRequest("GET", "/", nil))
	must.ErrorContains(t, err, "comes from no server")
}

func TestReceive_onlyAServerAsksForItself(t *testing.T) {
	lead := start(t, "a", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "a client asked for %s", r.URL.Path) })
	other := start(t, "b", never)
	elected(lead, other)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+lead.addr()+"/raft/join", nil)
	must.NoError(t, err)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	must.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	must.NoError(t, err)
	must.Eq(t, "a server asked for /raft/join", string(b))
	_, body, _ := ask(t, other, "GET", "", wordHeader, "") // a client cannot take the word away
	must.Eq(t, "a client asked for /a/b", body)
}

func TestBring_waitsForALeaderAndNoLonger(t *testing.T) {
	lead := start(t, "a", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	other := start(t, "b", never)
	status, _, _ := ask(t, other, "POST", "x")
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.ErrorIs(t, <-other.errs, state.ErrNoLeader)

	other.wait = time.Minute
	done := make(chan string)
	go func() {
		_, body, _ := ask(t, other, "POST", "later")
		done <- body
	}()
	other.elect("gone", "127.0.0.1:1") // refuses connections
	elected(lead, other)
	must.Eq(t, "later", <-done)
}

func TestBring_onlyOnce(t *testing.T) {
	// Each believes that the other leads.
	a, b := start(t, "a", never), start(t, "b", never)
	a.elect("b", b.addr())
	b.elect("a", a.addr())
	status, _, _ := ask(t, a, "POST", "x")
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.ErrorIs(t, <-a.errs, state.ErrNoLeader)
	for len(b.errs) > 0 {
		must.ErrorIs(t, <-b.errs, state.ErrNoLeader)
	}
}

func TestBring_leaderThatLeavesHasNothingDone(t *testing.T) {
	old := start(t, "a", never)
	lead := start(t, "b", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	other := start(t, "c", never)
	elected(old, other, lead)
	old.Leave()
	other.wait = time.Minute
	go func() {
		<-old.errs
		elected(lead, old, other)
	}()
	_, body, _ := ask(t, other, "POST", "again")
	must.Eq(t, "again", body)

	// What is too long to be kept is not sent again.
	elected(old, other, lead)
	status, _, _ := ask(t, other, "POST", strings.Repeat("x", 4*maxKept))
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.ErrorIs(t, <-other.errs, state.ErrNoLeader)
}

func TestBring_proofOfLeadership(t *testing.T) {
	s := start(t, "a", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	elected(s)
	status, _, _ := ask(t, s, "GET", "")
	must.Eq(t, http.StatusOK, status)
	s.mu.Lock()
	s.verify = state.ErrNoLeader
	s.mu.Unlock()
	status, _, _ = ask(t, s, "GET", "")
	must.Eq(t, http.StatusServiceUnavailable, status)
}

func TestBring_lostLeader(t *testing.T) {
	for _, tc := range []struct {
		name, method, body string
		header             []string
		again              bool
	}{
		{"a read is asked again", "GET", "", nil, true},
		{"a change is not", "POST", "x", nil, false},
		{"an end is not", "DELETE", "", nil, false},
		{"nor with a key of idempotency", "POST", "x", []string{"Idempotency-Key", "k"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked atomic.Int32
			lost := start(t, "a", func(http.ResponseWriter, *http.Request) {
				if asked.Add(1) == 1 {
					return // the connection is warm
				}
				panic(http.ErrAbortHandler) // as by a kill
			})
			lead := start(t, "b", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("from b")) })
			other := start(t, "c", never)
			other.wait = 20 * time.Second
			elected(lost, other, lead)
			ask(t, other, "GET", "")
			go func() {
				for asked.Load() < 2 {
					time.Sleep(time.Millisecond)
				}
				elected(lead, lost, other)
			}()
			status, body, _ := ask(t, other, tc.method, tc.body, tc.header...)
			if tc.again {
				must.Eq(t, "from b", body)
				return
			}
			must.Eq(t, http.StatusServiceUnavailable, status)
			must.ErrorIs(t, <-other.errs, state.ErrUnknownOutcome)
			must.Eq(t, 2, asked.Load())
		})
	}
}

func TestBring_silentLeaderIsGivenUp(t *testing.T) {
	end := make(chan struct{})
	silent := start(t, "a", func(http.ResponseWriter, *http.Request) { <-end })
	defer close(end)
	lead := start(t, "b", never)
	other := start(t, "c", never)
	elected(silent, other)
	go func() {
		time.Sleep(20 * time.Millisecond)
		other.elect(lead.id, lead.addr())
	}()
	status, _, _ := ask(t, other, "POST", "x")
	must.Eq(t, http.StatusServiceUnavailable, status)
	must.ErrorIs(t, <-other.errs, state.ErrUnknownOutcome)
}

func TestBring_answerCannotPassForTheServers(t *testing.T) {
	var asked atomic.Int32
	lead := start(t, "a", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.Header().Set(elsewhereHeader, r.Header.Get(wordHeader)+"true") // as from a sandbox
	})
	other := start(t, "b", never)
	elected(lead, other)
	status, _, _ := ask(t, other, "POST", "x")
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, 1, asked.Load())
}

func TestBring_upgrades(t *testing.T) {
	lead := start(t, "a", func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		line, _ := rw.ReadString('\n')
		_, _ = c.Write([]byte(line))
	})
	other := start(t, "b", never)
	elected(lead, other)
	c, err := net.Dial("tcp", other.public.Listener.Addr().String())
	must.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	must.NoError(t, err)
	must.Eq(t, http.StatusSwitchingProtocols, res.StatusCode)
	fmt.Fprintln(c, "hello")
	line, err := in.ReadString('\n')
	must.NoError(t, err)
	must.Eq(t, "hello\n", line)
}

func TestReplay_givesTheSameAgainWhileItIsShort(t *testing.T) {
	b := &replay{src: io.MultiReader(strings.NewReader("abc"), strings.NewReader("def"))}
	first := b.attempt()
	_, err := io.ReadFull(first, make([]byte, 4))
	must.NoError(t, err)
	second := b.attempt()
	_, err = first.Read(make([]byte, 1))
	must.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	all, err := io.ReadAll(second)
	must.NoError(t, err)
	must.Eq(t, "abcdef", string(all))
	must.True(t, b.again())

	long := bytes.Repeat([]byte("0123456789"), maxKept/5)
	b = &replay{src: bytes.NewReader(long)}
	all, err = io.ReadAll(b.attempt())
	must.NoError(t, err)
	must.Eq(t, long, all)
	must.False(t, b.again())
	b = &replay{src: io.MultiReader(strings.NewReader("a"), errReader{})}
	_, err = io.ReadAll(b.attempt())
	must.ErrorIs(t, err, errBroken)
}

var errBroken = errors.New("broken")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }
