package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/rbac"
)

func TestAuth_bothHeadersAndBothSpellings(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	path := "/sandboxes/" + string(testID)
	for name, tc := range map[string]struct {
		header []string
		status int
	}{
		"X-API-Key":              {[]string{"X-API-Key", keyA}, 200},
		"lower case":             {[]string{"x-api-key", keyA}, 200},
		"bearer":                 {[]string{"X-API-Key", "", "Authorization", "Bearer " + keyA}, 200},
		"bearer lower case":      {[]string{"X-API-Key", "", "Authorization", "bearer  " + keyA}, 200},
		"X-API-Key counts first": {[]string{"X-API-Key", keyA, "Authorization", "Bearer nonsense"}, 200},
		"other tenant, e2b form": {[]string{"X-API-Key", keyB}, 404},
		"nothing":                {[]string{"X-API-Key", ""}, 401},
		"wrong":                  {[]string{"X-API-Key", keyA + "0"}, 401},
		"basic":                  {[]string{"X-API-Key", "", "Authorization", "Basic " + keyA}, 401},
		"no scheme":              {[]string{"X-API-Key", "", "Authorization", keyA}, 401},
		"too long":               {[]string{"X-API-Key", strings.Repeat("a", maxKeyLen+1)}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.do("GET", path, "", tc.header...)
			must.Eq(t, tc.status, a.status, must.Sprint(a.body))
			if tc.status == 401 {
				a.mustFail(t, 401, api.CodeUnauthorized)
				must.NotEq(t, "", a.header.Get("WWW-Authenticate"))
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		a := raw(t, h, "GET "+path+" HTTP/1.1\r\nHost: x\r\nX-API-Key: "+keyA+"\r\nX-API-Key: "+keyB+"\r\n\r\n")
		must.Eq(t, 401, a.StatusCode)
	})
	t.Run("never in the URL", func(t *testing.T) {
		h.do("GET", path+"?api_key="+keyA+"&X-API-Key="+keyA, "", "X-API-Key", "").mustFail(t, 401, api.CodeUnauthorized)
	})
}

// Only these are served without a key.
func TestAuth_everyRouteNeedsAKey(t *testing.T) {
	h := newHarness(t)
	open := map[string]bool{"GET /health": true, "GET /v1/health": true, "GET /v1/version": true, "GET /v1/auth/links": true}
	for _, rt := range h.srv.routes() {
		must.Eq(t, open[rt.pattern], rt.open, must.Sprint(rt.pattern))
		if rt.open {
			continue
		}
		method, path, _ := strings.Cut(strings.NewReplacer("{id}", string(testID), "{name}", "base").Replace(rt.pattern), " ")
		h.do(method, path, "", "X-API-Key", "").mustFail(t, 401, api.CodeUnauthorized)
	}
}

func TestVersions_ofTheClient(t *testing.T) {
	h := newHarness(t)
	for name, tc := range map[string]struct {
		header, value string
		status        int
		code, says    string
	}{
		"same":             {api.ClientVersionHeader, version.Version, 200, "", ""},
		"newer":            {api.ClientVersionHeader, "7.0.0", 200, "", ""},
		"release of it":    {api.ClientVersionHeader, "0.1.0", 200, "", ""},
		"older":            {api.ClientVersionHeader, "0.0.9", 400, api.CodeVersion, version.MinClient},
		"pre-release":      {api.ClientVersionHeader, "0.1.0-alpha", 400, api.CodeVersion, version.MinClient},
		"no version":       {api.ClientVersionHeader, "latest", 400, api.CodeVersion, "semantic version"},
		"too long":         {api.ClientVersionHeader, "1.0.0-" + strings.Repeat("a", 200), 400, api.CodeVersion, "longer"},
		"API same":         {api.APIVersionHeader, "1", 200, "", ""},
		"API older":        {api.APIVersionHeader, "0", 400, api.CodeVersion, "at least 1"},
		"API newer":        {api.APIVersionHeader, "2", 400, api.CodeVersion, "at most 1"},
		"API not a number": {api.APIVersionHeader, "one", 400, api.CodeInvalid, "number"},
	} {
		t.Run(name, func(t *testing.T) {
			a := h.do("GET", "/v2/sandboxes", "", tc.header, tc.value)
			must.Eq(t, tc.status, a.status, must.Sprint(a.body))
			if tc.status != 200 {
				must.StrContains(t, a.mustFail(t, 400, tc.code), tc.says)
				must.Eq(t, 200, h.do("GET", "/v1/version", "", tc.header, tc.value).status, must.Sprint("whoever is refused must be able to learn why"))
			}
		})
	}
}

func TestCORS(t *testing.T) {
	h := newHarness(t)
	a := h.do("GET", "/v2/sandboxes", "", "Origin", "https://example.com")
	must.Eq(t, "*", a.header.Get("Access-Control-Allow-Origin"))
	for _, want := range []string{"X-Next-Token", "X-Total-Running", "RateLimit-Limit", "Retry-After"} {
		must.StrContains(t, a.header.Get("Access-Control-Expose-Headers"), want)
	}
	a = h.do("OPTIONS", "/v2/sandboxes", "", "X-API-Key", "", "Origin", "https://example.com", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "x-api-key,content-type")
	must.Eq(t, 204, a.status)
	must.Eq(t, "x-api-key,content-type", a.header.Get("Access-Control-Allow-Headers"))
	must.StrContains(t, a.header.Get("Access-Control-Allow-Methods"), "DELETE")
	a = h.do("OPTIONS", "/v2/sandboxes", "", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "a;b<script>")
	must.Eq(t, "", a.header.Get("Access-Control-Allow-Headers"))
	h.do("GET", "/v2/sandboxes", "", "X-API-Key", "", "Origin", "https://example.com").mustFail(t, 401, api.CodeUnauthorized)
}

func TestRequestID(t *testing.T) {
	h := newHarness(t)
	must.Eq(t, "my-id.1_x", h.do("GET", "/health", "", "X-Request-Id", "my-id.1_x").header.Get("X-Request-Id"))
	for _, bad := range []string{"", "a b", strings.Repeat("a", 65), "a\"b"} {
		got := h.do("GET", "/health", "", "X-Request-Id", bad).header.Get("X-Request-Id")
		must.NotEq(t, bad, got)
		must.NotEq(t, "", got)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	h := newHarness(t)
	h.do("GET", "/", "").mustFail(t, 404, codeNoRoute)
	h.do("GET", "/v3/sandboxes", "").mustFail(t, 404, codeNoRoute)
	h.do("GET", "/templates/base/nothing", "").mustFail(t, 404, codeNoRoute)
	a := h.do("PATCH", "/v2/sandboxes", "{}")
	a.mustFail(t, 405, codeNoMethod)
	must.Eq(t, "GET, POST", a.header.Get("Allow"))
	h.do("DELETE", "/health", "").mustFail(t, 405, codeNoMethod)
	h.do("BREW", "/health", "").mustFail(t, 405, codeNoMethod)
}

func TestPanics_areAnAnswerAndALine(t *testing.T) {
	h := newHarness(t)
	h.life.panics = "boom with " + keyA
	a := h.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
	a.mustFail(t, 500, api.CodeInternal)
	must.StrNotContains(t, a.body, "boom")
	must.StrContains(t, h.log.String(), "boom")
	must.StrContains(t, h.log.String(), "handler panicked")
	noSecrets(t, h.log.String())
}

func noSecrets(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{keyA[len(keyA)-40:], keyB[len(keyB)-40:]} {
		must.StrNotContains(t, text, secret)
	}
}

func TestLog_hasNoSecretsAndNoForgedLines(t *testing.T) {
	h := newHarness(t)
	h.life.err = fmt.Errorf("lookup of %s failed, so did %s", keyA, keyB)
	a := h.do("POST", "/v2/sandboxes", `{"templateID":"`+keyB+`","envVars":{"P":"`+keyA+`"}}`)
	a.mustFail(t, 500, api.CodeInternal)
	h.life.err = api.Errorf(404, api.CodeUnknownTemplate, "template %q does not exist", keyB)
	a = h.do("POST", "/v2/sandboxes", `{"templateID":"`+keyB+`"}`)
	noSecrets(t, a.body)
	h.do("GET", "/v1/templates/"+keyA, "")
	h.do("GET", "/v2/sandboxes?nextToken="+keyA, "", "X-Request-Id", keyB[:60])
	h.do("GET", "/a%0a2026-01-01T00:00:00Z%20[INFO]%20request%3a%20forged", "")
	log := h.log.String()
	noSecrets(t, log)
	for line := range strings.Lines(log) {
		must.False(t, strings.HasPrefix(line, "2026-01-01"), must.Sprint(line))
	}
	must.StrContains(t, log, "key_id=00000000000000aa")
	must.StrContains(t, log, "tenant=a")
	must.StrContains(t, log, "error_code=template_not_found")
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"nothing here":         "nothing here",
		"key " + keyA + ".":    "key sb_00000000000000aa_….",
		"key=" + keyB:          "key=e2b_…",
		"[" + keyB[:20] + "]":  "[e2b_…]",
		"sk_" + keyB + " x":    "sk_e2b_… x",
		"template e2b_desktop": "template e2b_desktop",
		"my_sb_thing_a":        "my_sb_thing_a",
	} {
		must.Eq(t, want, redact(in))
	}
}

func TestHostileBodies(t *testing.T) {
	h := newHarness(t)
	h.do("POST", "/v2/sandboxes", `{"templateID":"`+strings.Repeat("a", maxJSONBytes)+`"}`).mustFail(t, 413, api.CodeTooLarge)
	h.do("POST", "/v2/sandboxes", "\x1f\x8b\x08\x00", "Content-Encoding", "gzip").mustFail(t, 415, codeMediaType)
	h.do("POST", "/v2/sandboxes", strings.Repeat("[", maxJSONBytes)).mustFail(t, 400, api.CodeInvalid)
	h.do("POST", "/v2/sandboxes", strings.Repeat(`{"a":`, 10_000)).mustFail(t, 400, api.CodeInvalid)
	h.do("POST", "/v2/sandboxes", `{"templateID":"b","metadata":{`+strings.TrimSuffix(strings.Repeat(`"k":"v",`, 1000), ",")+`}}`).mustFail(t, 400, api.CodeInvalid)
	must.SliceEmpty(t, h.life.created)
}

// raw sends bytes and reads one answer.
func raw(t *testing.T, h *harness, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", h.http.Listener.Addr().String())
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, request)
	must.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must.NoError(t, err)
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestSlowBodies_areCutOff(t *testing.T) {
	h, _ := withNode(t, func(c *Config) { c.BodyTimeout = 50 * time.Millisecond })
	head := " HTTP/1.1\r\nHost: x\r\nX-API-Key: " + keyA + "\r\nContent-Length: 100\r\n\r\n"
	resp := raw(t, h, "POST /v2/sandboxes"+head+`{"temp`)
	must.Eq(t, http.StatusRequestTimeout, resp.StatusCode)
	for _, upload := range []string{"PUT /v1/sandboxes/" + string(testID) + "/archive", "POST /v1/sandboxes/" + string(testID) + "/envd/files"} {
		resp = raw(t, h, upload+"?path=/f"+head+"part of it")
		b, _ := io.ReadAll(resp.Body)
		must.Eq(t, http.StatusRequestTimeout, resp.StatusCode, must.Sprintf("%s: %s", upload, b))
	}
}

// The time for a body must not count while the request is served.
func TestBodyTimeout_endsWithTheBody(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.BodyTimeout, c.CallTimeout = 50*time.Millisecond, 300*time.Millisecond })
	h.life.block = true
	start := time.Now()
	h.do("POST", "/v2/sandboxes", `{"templateID":"base"}`).mustFail(t, http.StatusGatewayTimeout, codeTimeout)
	must.GreaterEq(t, 300*time.Millisecond, time.Since(start))
}

// startRun runs a server on a TCP and a unix listener.
func startRun(t *testing.T, srv *Server) (tcp, unix string, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	sock := filepath.Join(tempDir(t), "c.sock")
	u, err := net.Listen("unix", sock)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx, l, u) }()
	t.Cleanup(cancel)
	return "http://" + l.Addr().String(), "unix://" + sock, func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("Run does not end")
			return nil
		}
	}
}

func TestRun_servesUntilItsContextEndsAndEndsStreams(t *testing.T) {
	h, _ := withNode(t, func(c *Config) { c.HeaderTimeout = 100 * time.Millisecond })
	tcp, unix, stop := startRun(t, h.srv)
	for _, addr := range []string{tcp, unix} {
		c, err := api.New(api.Config{Address: addr, APIKey: keyA})
		must.NoError(t, err)
		must.NoError(t, c.WriteFile(t.Context(), testID, "/f", strings.NewReader("over "+addr), api.FileOptions{}))
		c.Close()
	}
	t.Run("slow header", func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(tcp, "http://"))
		must.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		must.NoError(t, err)
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err = io.ReadAll(conn)
		must.NoError(t, err, must.Sprint("the connection must be closed"))
	})
	t.Run("header flood", func(t *testing.T) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(tcp, "http://"))
		must.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("X-A: "+strings.Repeat("b", 90)+"\r\n", 1000))
		must.NoError(t, err)
		must.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		must.NoError(t, err)
		defer resp.Body.Close()
		must.Eq(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
	})
	c, err := api.New(api.Config{Address: tcp, APIKey: keyA})
	must.NoError(t, err)
	defer c.Close()
	hangs, _, err := c.ReadFile(t.Context(), testID, "/hangs", api.FileOptions{})
	must.NoError(t, err)
	defer hangs.Close()
	logs, _, err := c.Logs(t.Context(), testID, api.LogOptions{Follow: true})
	must.NoError(t, err)
	defer logs.Close()
	start := time.Now()
	must.NoError(t, stop())
	must.Less(t, 8*time.Second, time.Since(start), must.Sprint("streams must not hold the end up"))
	_, err = io.ReadAll(hangs)
	must.Error(t, err)
	_, err = c.Health(t.Context())
	must.ErrorIs(t, err, api.ErrUnreachable)
}

// No limit of a single write or call may cut a request that goes on for long.
func TestRun_longRequestsAreAnswered(t *testing.T) {
	const limit = 60 * time.Millisecond
	h, _ := withNode(t, func(c *Config) { c.CallTimeout, c.WriteTimeout, c.Templates = limit, limit, &fakeTemplates{} })
	tcp, _, stop := startRun(t, h.srv)
	c, err := api.New(api.Config{Address: tcp, APIKey: keyA})
	must.NoError(t, err)
	defer c.Close()
	slow := func() io.Reader {
		r, w := io.Pipe()
		go func() {
			for range 8 {
				_, _ = io.WriteString(w, "a piece")
				time.Sleep(limit / 2)
			}
			_ = w.Close()
		}()
		return r
	}
	_, err = c.ImportTemplate(t.Context(), "base", slow(), api.ImportOptions{})
	must.NoError(t, err)
	must.NoError(t, c.WriteFile(t.Context(), testID, "/f", slow(), api.FileOptions{}))
	late, _, err := c.ReadFile(t.Context(), testID, "/late", api.FileOptions{})
	must.NoError(t, err)
	defer late.Close()
	b, err := io.ReadAll(late)
	must.NoError(t, err)
	must.Eq(t, "late", string(b))
	body, _, err := c.Logs(t.Context(), testID, api.LogOptions{Stream: "stderr", Follow: true})
	must.NoError(t, err)
	defer body.Close()
	b, err = io.ReadAll(body) // the fake is silent, then ends
	must.NoError(t, err, must.Sprint("a stream that was silent must end as it should"))
	must.Eq(t, "log line\n", string(b))
	must.NoError(t, stop())
}

func TestRun_failsWithItsListener(t *testing.T) {
	h := newHarness(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	must.NoError(t, l.Close())
	must.ErrorContains(t, h.srv.Run(t.Context(), l), "serve on")
	must.Error(t, h.srv.Run(t.Context()))
}

func TestNew_wantsItsParts(t *testing.T) {
	_, err := New(Config{})
	must.ErrorContains(t, err, "Lifecycle")
	_, err = New(Config{Lifecycle: &fakeLifecycle{}, Auth: fakeAuth{}, Access: rbac.New(noPolicy{}), BodyTimeout: -1})
	must.ErrorContains(t, err, "negative")
}
