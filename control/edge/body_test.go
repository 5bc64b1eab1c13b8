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
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"
)

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

// post begins a request to envd through an edge, with a header that says how long its body is, and returns the connection.
func (w *world) post(t *testing.T, length string) net.Conn {
	t.Helper()
	e := New(Config{Sandboxes: w})
	t.Cleanup(e.Close)
	out := httptest.NewServer(e.Wrap(http.NotFoundHandler()))
	t.Cleanup(out.Close)
	c, err := net.Dial("tcp", out.Listener.Addr().String())
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = fmt.Fprintf(c, "POST /files HTTP/1.1\r\nHost: localhost\r\n%s: %s\r\n%s: %d\r\n%s\r\n\r\n", idHeader, boxID, portHeader, EnvdPort, length)
	must.NoError(t, err)
	return c
}

// A client that looks at the answer only when it has sent everything finds it, however much nobody wanted.
func TestServe_anAnswerBeforeTheBodyWasReadReachesWhoSendsOn(t *testing.T) {
	const size = 24 << 20
	for name, coding := range map[string]string{"a length": fmt.Sprintf("Content-Length: %d", size), "chunks": "Transfer-Encoding: chunked"} {
		for _, early := range []struct {
			name  string
			reads int64
		}{{"nothing was read", 0}, {"a part was read", 1 << 20}} {
			t.Run(name+", "+early.name, func(t *testing.T) {
				w := &world{box: Sandbox{ID: boxID, EnvdToken: token}}
				w.envd = tripper(func(r *http.Request) (*http.Response, error) {
					_, err := io.CopyN(io.Discard, r.Body, early.reads)
					rec := httptest.NewRecorder()
					rec.Header().Set("Content-Length", "4")
					rec.WriteHeader(http.StatusInsufficientStorage)
					fmt.Fprint(rec, "full")
					return rec.Result(), err
				})
				c := w.post(t, coding)
				var err error
				block := strings.Repeat("x", 1<<20)
				for range size / len(block) {
					if strings.HasPrefix(coding, "T") {
						_, err = fmt.Fprintf(c, "%x\r\n%s\r\n", len(block), block)
					} else {
						_, err = io.WriteString(c, block)
					}
					must.NoError(t, err)
				}
				if strings.HasPrefix(coding, "T") {
					_, err = io.WriteString(c, "0\r\n\r\n")
					must.NoError(t, err)
				}
				in := bufio.NewReader(c)
				resp, err := http.ReadResponse(in, nil)
				must.NoError(t, err)
				b, err := io.ReadAll(resp.Body)
				must.NoError(t, err)
				must.Eq(t, "507 full", fmt.Sprint(resp.StatusCode, " ", string(b)))
				must.True(t, resp.Close) // so that nothing of a body is ever taken for a request
				_, err = in.ReadByte()
				must.ErrorIs(t, err, io.EOF)
			})
		}
	}
}

// A client that never comes with the rest has its answer all the same, and does not keep the request.
func TestServe_anAnswerDoesNotWaitForABodyThatDoesNotCome(t *testing.T) {
	w := &world{box: Sandbox{ID: boxID, EnvdToken: token}}
	read := make(chan error, 1)
	w.envd = tripper(func(r *http.Request) (*http.Response, error) {
		go func() { // as a transport does that passes a body on
			_, err := r.Body.Read(make([]byte, 1))
			read <- err
		}()
		rec := httptest.NewRecorder()
		rec.Header().Set("Content-Length", "5")
		fmt.Fprint(rec, "early")
		return rec.Result(), nil
	})
	c := w.post(t, "Content-Length: 100")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, "early", string(b))
	must.Error(t, <-read)
	// What comes late is no request.
	_, err = io.WriteString(c, "GET /late HTTP/1.1\r\nHost: localhost\r\n\r\n")
	must.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	must.Error(t, err)
}
