package server

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// withAudit gives a harness an audit log.
func withAudit(t *testing.T, h *harness) *audit.Log {
	t.Helper()
	dir := t.TempDir()
	signer, err := local.OpenSigner(filepath.Join(dir, "keys.json"))
	must.NoError(t, err)
	l, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), Signer: signer, RepeatEvery: time.Hour})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, l.Close()) })
	h.srv.cfg.Audit = l
	return l
}

// events are those of the log, oldest first, once there are n of them.
func events(t *testing.T, l *audit.Log, n int) []audit.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, l.Wait(ctx, uint64(n-1)))
	list, _, err := l.Query(t.Context(), audit.Query{}, audit.Page{Ascending: true})
	must.NoError(t, err)
	must.Len(t, n, list)
	return list
}

const createBody = `{"templateID":"base","envVars":{"TOKEN":"hunter2"}}`

func TestRecord_aChangeIsOnDiskBeforeItsAnswer(t *testing.T) {
	h := newHarness(t)
	l := withAudit(t, h)
	a := h.do("POST", "/v2/sandboxes", createBody, "User-Agent", "me/1 "+keyB, "X-Request-Id", "req-1")
	must.Eq(t, 201, a.status, must.Sprint(a.body))
	last, _ := l.Last()
	must.Eq(t, uint64(1), last)
	e := events(t, l, 1)[0]
	must.NotEq(t, "", e.Details["ms"]+"0")
	delete(e.Details, "ms")
	e.ID, e.Time = "", time.Time{}
	must.Eq(t, audit.Event{
		Index: 1, Tenant: "a", User: "key:00000000000000aa", Action: "sandbox.create", Resource: "sandbox", ResourceID: string(testID),
		Result: audit.ResultOK, Source: "127.0.0.1", Agent: "me/1 e2b_…", Request: "req-1",
		Details: map[string]string{"status": "201", "route": "POST /v2/sandboxes"},
	}, e)
	h.do("GET", "/sandboxes/"+string(testID), "")
	must.Eq(t, 204, h.do("DELETE", "/sandboxes/"+string(testID), "").status)
	h.do("DELETE", "/sandboxes/"+string(testID), "").mustFail(t, 404, api.CodeNotFound)
	got := events(t, l, 3)
	must.Eq(t, "sandbox.delete", got[1].Action)
	must.Eq(t, string(testID), got[1].ResourceID)
	must.Eq(t, audit.ResultFailed, got[2].Result)
	must.Eq(t, api.CodeNotFound, got[2].Details["error_code"])
}

func TestRecord_refusals(t *testing.T) {
	h := newHarness(t)
	l := withAudit(t, h)
	for range 5 {
		h.do("GET", "/v2/sandboxes", "", "X-API-Key", strings.Replace(keyA, "aa", "ab", 1)).mustFail(t, 401, api.CodeUnauthorized)
	}
	h.do("POST", "/v2/sandboxes", createBody, "X-API-Key", "").mustFail(t, 401, api.CodeUnauthorized)
	h.life.err = api.Errorf(429, "quota_exceeded", "too many")
	h.do("POST", "/v2/sandboxes", createBody).mustFail(t, 429, "quota_exceeded")
	got := events(t, l, 3)
	for i, want := range []struct{ action, status, tenant string }{{"sandbox.read", "401", ""}, {"sandbox.create", "401", ""}, {"sandbox.create", "429", "a"}} {
		must.Eq(t, want.action, got[i].Action)
		must.Eq(t, audit.ResultDenied, got[i].Result)
		must.Eq(t, want.status, got[i].Details["status"])
		must.Eq(t, want.tenant, got[i].Tenant)
	}
}

func TestRecord_whatCannotBeRecordedIsNotDone(t *testing.T) {
	h := newHarness(t)
	l := withAudit(t, h)
	must.NoError(t, l.Close())
	h.life.sandboxes[testID] = sandbox(testID)
	a := h.do("POST", "/v2/sandboxes", createBody)
	a.mustFail(t, 503, api.CodeAudit)
	must.Eq(t, "1", a.header.Get("Retry-After"))
	must.SliceEmpty(t, h.life.created)
	must.Eq(t, 200, h.do("GET", "/sandboxes/"+string(testID), "").status, must.Sprint("reads go on"))
}

// closer closes the log while a sandbox is being made.
type closer struct {
	*fakeLifecycle
	l *audit.Log
}

func (c *closer) Create(ctx context.Context, p lifecycle.CreateParams) (state.Sandbox, []guest.Step, error) {
	_ = c.l.Close()
	return c.fakeLifecycle.Create(ctx, p)
}

func TestRecord_whatWasNotRecordedIsNotAcknowledged(t *testing.T) {
	h := newHarness(t)
	h.srv.cfg.Lifecycle = &closer{h.life, withAudit(t, h)}
	a := h.do("POST", "/v2/sandboxes", createBody)
	a.mustFail(t, 503, api.CodeAudit)
	must.StrNotContains(t, a.body, string(testID))
}

func TestRecord_aPanicIsAFailure(t *testing.T) {
	h := newHarness(t)
	l := withAudit(t, h)
	h.life.panics = "boom"
	h.do("POST", "/v2/sandboxes", createBody).mustFail(t, 500, api.CodeInternal)
	e := events(t, l, 1)[0]
	must.Eq(t, audit.ResultFailed, e.Result)
	must.Eq(t, "500", e.Details["status"])
}

func TestRecord_whatLastsHasAStartAndAnEnd(t *testing.T) {
	h, _ := withNode(t)
	l := withAudit(t, h)
	start := "/v1/sandboxes/" + string(testID) + "/envd/process.Process/Start"
	must.Eq(t, 200, h.do("POST", start, "{}").status)
	got := events(t, l, 2)
	must.Eq(t, "sandbox.execute", got[0].Action)
	must.Eq(t, audit.ResultStarted, got[0].Result)
	must.Eq(t, audit.ResultOK, got[1].Result)
	must.Eq(t, "200", got[1].Details["status"])
	must.Eq(t, got[0].Request, got[1].Request)
	// To look is no change, whatever the method.
	must.Eq(t, 200, h.do("POST", "/v1/sandboxes/"+string(testID)+"/envd/process.Process/List", "{}").status)
	must.Eq(t, 200, h.do("POST", "/v1/sandboxes/"+string(testID)+"/envd/filesystem.Filesystem/Remove", "{}").status)
	must.Eq(t, "file.delete", events(t, l, 3)[2].Action)
}

// operator is fakeAuth whose key of tenant a is good in all tenants.
type operator struct{ fakeAuth }

func (o operator) Authenticate(ctx context.Context, c auth.Credentials) (auth.Identity, error) {
	who, err := o.fakeAuth.Authenticate(ctx, c)
	if who.Tenant == "a" {
		who.Tenant, who.Roles, who.Scope = state.DefaultTenant, []string{rbac.RoleAdmin}, state.Everywhere
	}
	return who, err
}

func TestAuditAPI_showsTenantsTheirOwn(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Auth = operator{} })
	withAudit(t, h)
	for range 3 {
		must.Eq(t, 201, h.do("POST", "/v2/sandboxes", createBody).status)
	}
	must.Eq(t, 201, h.do("POST", "/v2/sandboxes", createBody, "X-API-Key", keyB).status)
	list := func(query string, header ...string) api.AuditEvents {
		t.Helper()
		var out api.AuditEvents
		a := h.do("GET", "/v1/audit"+query, "", header...)
		must.Eq(t, 200, a.status, must.Sprint(a.body))
		must.NoError(t, json.Unmarshal([]byte(a.body), &out))
		return out
	}
	must.Len(t, 4, list("").Events)
	must.Len(t, 1, list("?tenant=b").Events)
	must.Len(t, 1, list("", "X-API-Key", keyB).Events)
	h.do("GET", "/v1/audit?tenant=default", "", "X-API-Key", keyB).mustFail(t, 404, api.CodeNotFound)
	page := list("?limit=2&order=asc")
	must.Eq(t, uint64(3), page.Next)
	must.Len(t, 2, list("?limit=2&order=asc&from=3").Events)
	must.Len(t, 0, list("?action=file.*").Events)
	for _, bad := range []string{"?limit=0", "?limit=1001", "?from=-1", "?after=yesterday", "?order=up", "?user=" + strings.Repeat("x", 513)} {
		h.do("GET", "/v1/audit"+bad, "").mustFail(t, 400, api.CodeInvalid)
	}
	st, err := h.client().AuditState(t.Context())
	must.NoError(t, err)
	must.Eq(t, uint64(4), st.Last)
	n := 0
	for e, err := range h.client().AllAudit(t.Context(), api.AuditOptions{Limit: 1, Ascending: true}) {
		must.NoError(t, err)
		n++
		must.Eq(t, uint64(n), e.Index)
	}
	must.Eq(t, 4, n)
}

func TestAuditAPI_isFollowedLive(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Auth = operator{}; c.BeatInterval = 5 * time.Millisecond })
	withAudit(t, h)
	h.do("POST", "/v2/sandboxes", createBody)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make(chan api.AuditEvent)
	done := make(chan error, 1)
	go func() {
		done <- h.client().FollowAudit(ctx, api.AuditOptions{Action: "sandbox.*"}, func(e api.AuditEvent) error {
			got <- e
			return nil
		})
	}()
	made := 0
	for seen := false; !seen; { // it follows from when it is connected on
		h.do("POST", "/v2/sandboxes", createBody)
		made++
		select {
		case e := <-got:
			must.Greater(t, 1, e.Index)
			seen = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	for {
		select {
		case <-got:
			continue
		case err := <-done:
			must.ErrorIs(t, err, context.Canceled)
		}
		break
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", h.http.URL+"/v1/audit/stream", nil)
	must.NoError(t, err)
	req.Header.Set("X-API-Key", keyA)
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Last-Event-ID", "1")
	resp, err := http.DefaultClient.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	b := make([]byte, 16)
	_, err = resp.Body.Read(b)
	must.NoError(t, err)
	must.StrHasPrefix(t, "id: 2\ndata: {", string(b))
}

func TestAuditAPI_withoutALog(t *testing.T) {
	h := newHarness(t)
	for _, path := range []string{"/v1/audit", "/v1/audit/stream", "/v1/audit/head"} {
		h.do("GET", path, "").mustFail(t, 501, codeUnsupported)
	}
}
