package edge

import (
	"errors"
	"fmt"
	"io"
	"net/http"
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

// A sandbox begins to move while a request is on its way: before it counts in the traffic it waits for the end of the move, and from then on the move
// waits for it.
func TestServe_aRequestThatMeetsAMoveIsAnswered(t *testing.T) {
	for _, tc := range []struct {
		when       string
		find, wake int // the look after which it moves, and after how many wakes it runs
		woken      int
	}{
		{"after it was found", 1, 1, 1},
		{"after it was found, and again", 1, 3, 3},
		{"while it is under way", 2, 1, 0},
	} {
		t.Run(tc.when, func(t *testing.T) {
			s := newScene(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "answered") }, nil)
			s.wakes = tc.wake
			finds := 0
			s.found = func(w *world) {
				if finds++; finds == tc.find {
					w.paused = true
				}
			}
			status, body, _ := s.get(t, 3000, "/")
			must.Eq(t, "answered", body)
			must.Eq(t, http.StatusOK, status)
			must.Eq(t, tc.woken, s.woken)
		})
	}
}
