package edge

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shoenig/test/must"
)

// wildcard returns a certificate for *.sandboxes.test, and the pool that trusts it.
func wildcard(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"*.sandboxes.test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	must.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// secure is the edge of newScene behind TLS, and a client whose every name leads there.
func secure(t *testing.T, inner http.HandlerFunc) *http.Client {
	t.Helper()
	s := newScene(t, inner, nil)
	e := New(Config{Sandboxes: s.world})
	t.Cleanup(e.Close)
	cert, trusted := wildcard(t)
	out := httptest.NewUnstartedServer(e.Wrap(http.NotFoundHandler()))
	out.EnableHTTP2 = true
	out.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	out.StartTLS()
	t.Cleanup(out.Close)
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trusted}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, out.Listener.Addr().String())
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

const named = "https://3000-" + string(boxID) + ".sandboxes.test/"

func TestTLS_aWildcardServesSandboxesByTheirNames(t *testing.T) {
	c := secure(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Host, r.Proto, r.Header.Get("X-Forwarded-Proto"))
	})
	resp, err := c.Get(named)
	must.NoError(t, err)
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.Eq(t, "HTTP/2.0", resp.Proto)
	must.Eq(t, "3000-"+string(boxID)+".sandboxes.test HTTP/1.1 https", string(b))

	resp, err = c.Get("https://4000-" + string(boxID) + ".sandboxes.test/")
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	must.Eq(t, 502, resp.StatusCode)
	_, err = c.Get("https://3000." + string(boxID) + ".sandboxes.test/") //nolint:bodyclose // there is none
	must.ErrorContains(t, err, "certificate")
}

// Each part of a body is inside before the next is sent, and each event outside before the next is made.
func TestTLS_slowBodiesAndEventsPassAsTheyCome(t *testing.T) {
	c := secure(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		_ = rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "data: %s\n\n", lines.Text())
			_ = rc.Flush()
		}
	})
	body, say := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, named, body)
	must.NoError(t, err)
	resp, err := c.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	events := bufio.NewReader(resp.Body)
	for i := range 5 {
		fmt.Fprintf(say, "part %d\n", i)
		line, err := events.ReadString('\n')
		must.NoError(t, err)
		must.Eq(t, fmt.Sprintf("data: part %d\n", i), line)
		_, err = events.ReadString('\n')
		must.NoError(t, err)
	}
	must.NoError(t, say.Close())
	_, err = io.ReadAll(events)
	must.NoError(t, err)
}

func TestTLS_webSocketsPassBothWays(t *testing.T) {
	c := secure(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		for {
			kind, b, err := ws.Read(r.Context())
			if err != nil || ws.Write(r.Context(), kind, append([]byte("echo "), b...)) != nil {
				return
			}
		}
	})
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false                                                      //nolint:forcetypeassert // secure made it
	c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}                              //nolint:forcetypeassert // secure made it
	ws, _, err := websocket.Dial(t.Context(), "wss"+named[len("https"):], &websocket.DialOptions{HTTPClient: c}) //nolint:bodyclose // the library's
	must.NoError(t, err)
	defer ws.CloseNow()
	for _, word := range []string{"one", "two"} {
		must.NoError(t, ws.Write(t.Context(), websocket.MessageText, []byte(word)))
		_, b, err := ws.Read(t.Context())
		must.NoError(t, err)
		must.Eq(t, "echo "+word, string(b))
	}
	must.NoError(t, ws.Close(websocket.StatusNormalClosure, ""))
}
