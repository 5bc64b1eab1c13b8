package server

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/quota"
	"github.com/soulbox-dev/soulbox/control/state"
)

// openQuotas are quotas in tables of their own.
func openQuotas(t *testing.T) (*quota.Service, *state.Server) {
	t.Helper()
	l := quota.New(nil)
	st, err := state.Open(state.Config{Dir: t.TempDir(), Counter: l})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, st.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, st.WaitLeader(ctx))
	return &quota.Service{Ledger: l, State: st}, st
}

func TestQuotaAPI(t *testing.T) {
	quotas, st := openQuotas(t)
	h := newHarness(t, func(c *Config) { c.Auth = operator{}; c.Quotas = quotas })
	c := h.client()
	q, err := c.Quota(t.Context(), "default")
	must.NoError(t, err)
	must.Eq(t, api.NoLimit, q.Effective[api.QuotaSandboxes])
	_, err = c.SetQuota(t.Context(), api.DefaultQuota, map[string]int64{api.QuotaSandboxes: 5, api.QuotaMemory: 1024})
	must.NoError(t, err)
	q, err = c.SetQuota(t.Context(), "default", map[string]int64{api.QuotaSandboxes: 1})
	must.NoError(t, err)
	must.Eq(t, 1, q.Effective[api.QuotaSandboxes])
	must.Eq(t, 1024, q.Effective[api.QuotaMemory])
	must.Eq(t, map[string]int64{api.QuotaSandboxes: 1}, q.Limits)
	now := time.Now()
	sb := state.Sandbox{
		ID: testID, Tenant: "default", Template: "base", State: state.Starting, CreatedAt: now, EndAt: now, MaxEndAt: now, CPUMillis: 500, MemoryMB: 64, DiskMB: 8,
	}
	_, err = st.Apply(t.Context(), &state.SandboxCreate{Sandbox: sb})
	must.NoError(t, err)
	u, err := c.QuotaUsage(t.Context(), "default")
	must.NoError(t, err)
	must.Eq(t, api.LimitUsage{Used: 1, Limit: 1}, u.Usage[api.QuotaSandboxes])
	must.Eq(t, api.LimitUsage{Used: 500, Limit: api.NoLimit}, u.Usage[api.QuotaCPU])
	sb.ID = otherID
	_, err = st.Apply(t.Context(), &state.SandboxCreate{Sandbox: sb})
	h.life.err = err
	msg := h.do("POST", "/v2/sandboxes", createBody).mustFail(t, 429, api.CodeQuota)
	must.Eq(t, "quota of tenant default: sandboxes: 1 of 1 are in use, 1 more are asked for", msg)
}

func TestQuotaAPI_refusals(t *testing.T) {
	quotas, _ := openQuotas(t)
	h := newHarness(t, func(c *Config) { c.Auth = operator{}; c.Quotas = quotas })
	const body = `{"limits":{"sandboxes":1}}`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"an unknown limit":   {"PUT", "/v1/quotas/default", `{"limits":{"cpus":1}}`, 400, api.CodeInvalid},
		"a negative limit":   {"PUT", "/v1/quotas/default", `{"limits":{"sandboxes":-2}}`, 400, api.CodeInvalid},
		"no limits":          {"PUT", "/v1/quotas/default", `{}`, 400, api.CodeInvalid},
		"not a number":       {"PUT", "/v1/quotas/default", `{"limits":{"sandboxes":"many"}}`, 400, api.CodeInvalid},
		"an unknown tenant":  {"PUT", "/v1/quotas/nobody", body, 404, api.CodeNotFound},
		"a bad tenant":       {"GET", "/v1/quotas/A.B", "", 400, api.CodeInvalid},
		"a bad tenant's use": {"GET", "/v1/quotas/-/usage", "", 400, api.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) { h.do(c.method, c.path, c.body).mustFail(t, c.status, c.code) })
	}
	must.Eq(t, 200, h.do("GET", "/v1/quotas/b", "", "X-API-Key", keyB).status)
	h.do("PUT", "/v1/quotas/b", body, "X-API-Key", keyB).mustFail(t, 403, "forbidden")
	h.do("GET", "/v1/quotas/default", "", "X-API-Key", keyB).mustFail(t, 404, api.CodeNotFound)
	h.do("GET", "/v1/quotas/*", "", "X-API-Key", keyB).mustFail(t, 404, api.CodeNotFound)
}

func TestQuota_callsTooFast(t *testing.T) {
	quotas, _ := openQuotas(t)
	h := newHarness(t, func(c *Config) { c.Quotas = quotas })
	quotas.SetQuota("a", map[string]int64{api.QuotaCalls: 0})
	a := h.do("GET", "/v2/sandboxes", "")
	a.mustFail(t, http.StatusTooManyRequests, api.CodeRate)
	must.Eq(t, "3600", a.header.Get("Retry-After"))
	must.Eq(t, 200, h.do("GET", "/v2/sandboxes", "", "X-API-Key", keyB).status, must.Sprint("another tenant"))
}
