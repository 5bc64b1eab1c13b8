package api

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api/version"
)

func TestNew_addresses(t *testing.T) {
	t.Setenv(EnvAddress, "")
	t.Setenv(EnvAPIKey, "")
	for _, good := range []string{"", "http://127.0.0.1:7300", "https://soulbox.example/prefix/", "unix:///run/soulbox/control.sock"} {
		_, err := New(Config{Address: good})
		must.NoError(t, err, must.Sprint(good))
	}
	for _, bad := range []string{
		"127.0.0.1:7300", "ftp://x", "http://", "unix://", "unix://relative", "http://user:secret@host", "http://x?q=1", "http://x#f", "http://[::1", "\x00",
	} {
		_, err := New(Config{Address: bad})
		must.Error(t, err, must.Sprint(bad))
		must.StrNotContains(t, err.Error(), "secret")
	}
	_, err := New(Config{APIKey: "a b"})
	must.Error(t, err)
	_, err = New(Config{APIKey: "a\r\nX-Injected: b"})
	must.Error(t, err)
	_, err = New(Config{Address: "unix:///x", HTTPClient: http.DefaultClient})
	must.Error(t, err)
}

func TestNew_environment(t *testing.T) {
	t.Setenv(EnvAddress, "http://from.env:1")
	t.Setenv(EnvAPIKey, "key-of-env")
	c, err := New(Config{})
	must.NoError(t, err)
	must.Eq(t, "http://from.env:1", c.Address())
	must.Eq(t, "key-of-env", c.key)
	c, err = New(Config{Address: "http://given:2", APIKey: "given"})
	must.NoError(t, err)
	must.Eq(t, "http://given:2", c.Address())
	must.Eq(t, "given", c.key)
}

// serve returns a client of a server that answers with h.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(Config{Address: srv.URL + "/prefix/", APIKey: "the-key", UserAgent: "test/1"})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestClient_sendsItsVersionsAndKey(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		must.Eq(t, version.Version, r.Header.Get(ClientVersionHeader))
		must.Eq(t, "1", r.Header.Get(APIVersionHeader))
		must.Eq(t, "the-key", r.Header.Get("X-API-Key"))
		must.Eq(t, "test/1 soulbox-go/"+version.Version, r.Header.Get("User-Agent"))
		must.Eq(t, "/prefix/v1/templates/a%2Fb", r.URL.EscapedPath())
		_, _ = io.WriteString(w, `{"name":"a/b"}`)
	})
	got, err := c.Template(t.Context(), "a/b")
	must.NoError(t, err)
	must.Eq(t, "a/b", got.Name)
}

func TestClient_errors(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		status int
		code   string
		says   string
	}{
		"the service's own": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(409)
			_, _ = io.WriteString(w, `{"code":409,"message":"it is busy","error_code":"conflict"}`)
		}, 409, CodeConflict, "it is busy"},
		"the status counts": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			_, _ = io.WriteString(w, `{"code":200,"message":"m"}`)
		}, 404, "", "m"},
		"a proxy's page": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(502)
			_, _ = io.WriteString(w, `<html>`)
		}, 502, CodeInternal, "502 Bad Gateway"},
		"no JSON":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, 503, CodeUnavailable, "decode"},
		"broken off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 503, CodeUnavailable, "does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			c := serve(t, tc.answer)
			_, err := c.Version(t.Context())
			must.Error(t, err)
			must.Eq(t, tc.status, StatusOf(err))
			must.Eq(t, tc.code, AsError(err).ErrorCode)
			must.StrContains(t, err.Error(), tc.says)
			must.StrNotContains(t, err.Error(), "the-key")
		})
	}
	t.Run("context", func(t *testing.T) {
		c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := c.Version(ctx)
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.False(t, errors.Is(err, ErrUnreachable))
	})
	t.Run("of a call", func(t *testing.T) {
		for name, tc := range map[string]struct {
			answer     http.HandlerFunc
			status     int
			word, says string
		}{
			"the service's own": {func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(409)
				_, _ = io.WriteString(w, `{"code":409,"message":"it has ended","error_code":"sandbox_not_running"}`)
			}, 409, CodeNotRunning, "it has ended"},
			"the sandbox's": {func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/connect+proto")
				_, _ = w.Write(lastMessage(`{"error":{"code":"invalid_argument","message":"no program x"},"metadata":{"soulbox-error":["command_not_found"]}}`))
			}, 400, CodeCommand, "no program x"},
			"one without a word": {func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/connect+proto")
				_, _ = w.Write(lastMessage(`{"error":{"code":"not_found","message":"process with pid 8 not found"}}`))
			}, 404, "not_found", "pid 8"},
			"no protocol": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, 503, CodeUnavailable, "content-type"},
		} {
			c := serve(t, tc.answer)
			_, err := c.Exec(t.Context(), NewSandboxID(), ExecRequest{Argv: []string{"true"}})
			must.Error(t, err, must.Sprint(name))
			must.Eq(t, tc.status, StatusOf(err), must.Sprint(name, err))
			must.Eq(t, tc.word, AsError(err).ErrorCode, must.Sprint(name))
			must.StrContains(t, err.Error(), tc.says)
		}
	})
}

func TestClient_unreachable(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	c, err := New(Config{Address: srv.URL})
	must.NoError(t, err)
	_, err = c.GetSandbox(t.Context(), NewSandboxID())
	must.ErrorIs(t, err, ErrUnreachable)
	must.StrContains(t, err.Error(), srv.URL)
}

func FuzzParseSandboxID(f *testing.F) {
	for _, s := range []string{"", "i", "iaaaaaaaaaaaaaaaaaaaa", "iaaaaaaaaaaaaaaaaaaaa-client", "Iaaaaaaaaaaaaaaaaaaaa", strings.Repeat("i", 1000), "i\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseSandboxID(s)
		if err != nil {
			return
		}
		if len(id) != 21 || !strings.HasPrefix(s, string(id)) {
			t.Fatalf("%q is taken as %q", s, id)
		}
	})
}

// lastMessage ends a stream of the protocol.
func lastMessage(s string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{2}, uint32(len(s))), s...)
}
