package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// rights is a server with real state, keys and decisions, with the tenants acme and other, and a sandbox of acme.
type rights struct {
	*harness
	state *state.Server
	auth  *auth.Service
	admin string // the first key
}

// stateTemplates are the templates that the state has.
type stateTemplates struct {
	Templates
	*state.Server
}

func (s stateTemplates) List(_ context.Context, tenant string) ([]state.Template, error) {
	return s.Server.Templates(tenant)
}

func (s stateTemplates) Get(_ context.Context, tenant, name string) (state.Template, error) {
	return s.Server.Template(tenant, name)
}

func (s stateTemplates) Delete(ctx context.Context, tenant, name string) error {
	_, err := s.Server.Apply(ctx, &state.TemplateDelete{Tenant: tenant, Name: name})
	return err
}

func (s stateTemplates) Import(ctx context.Context, who auth.Identity, name, _ string, _ io.Reader) (state.Template, error) {
	r, err := s.Server.Apply(ctx, &state.TemplatePut{Template: state.Template{Tenant: who.Tenant, Name: name, Digest: "sha256:00", CreatedAt: testTime}})
	return r.Template, err
}

func (s stateTemplates) SetPlacement(ctx context.Context, tenant, name string, where placement.Rules) (state.Template, error) {
	r, err := s.Server.Apply(ctx, &state.TemplatePlacement{Tenant: tenant, Name: name, Where: string(where)})
	return r.Template, err
}

func (s stateTemplates) SetNetwork(ctx context.Context, tenant, name string, p state.NetworkPolicy) (state.Template, error) {
	r, err := s.Server.Apply(ctx, &state.TemplateNetwork{Tenant: tenant, Name: name, Network: p})
	return r.Template, err
}

func withRights(t *testing.T, change ...func(*Config)) *rights {
	t.Helper()
	st, err := state.Open(state.Config{})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, st.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, st.WaitLeader(ctx))
	x := &rights{state: st, auth: auth.New(st, nil)}
	for _, id := range []string{"acme", "other"} {
		_, err := st.Apply(t.Context(), &state.TenantPut{Tenant: state.Tenant{ID: id, Name: "The " + id}})
		must.NoError(t, err)
	}
	secret, _, err := x.auth.Bootstrap(t.Context(), t.TempDir()+"/key")
	must.NoError(t, err)
	x.admin = secret.Key()
	x.harness = newHarness(t, append([]func(*Config){func(c *Config) {
		c.Auth, c.Access, c.Tenants, c.Policy, c.Keys = auth.NewChain(x.auth), rbac.New(st), st, st, x.auth
		c.Templates, c.Secrets = stateTemplates{Server: st}, secretsOf(t, st)
	}}, change...)...)
	_, err = st.Apply(t.Context(), &state.TemplatePut{Template: state.Template{Tenant: "acme", Name: "base", Digest: "sha256:aa", CreatedAt: testTime, UpdatedAt: testTime}})
	must.NoError(t, err)
	sb := sandbox(testID)
	sb.Tenant, sb.KeyID, sb.Owner = "acme", "", "key:someone"
	sb.EnvdToken = "envd-token"
	x.life.sandboxes[testID] = sb
	return x
}

// key makes a key with roles in a tenant.
func (x *rights) key(tenant string, roles ...string) string {
	x.t.Helper()
	secret, _, err := x.auth.Make(x.t.Context(), state.Key{Tenant: tenant, Name: "k", Roles: roles})
	must.NoError(x.t, err)
	return secret.Key()
}

// as makes a request with a key.
func (x *rights) as(key, method, path, body string, header ...string) answer {
	x.t.Helper()
	return x.do(method, path, body, append([]string{"X-API-Key", key}, header...)...)
}

// C01: another tenant's object and one that does not exist are the same, on every route that there is.
func TestC01_anotherTenantsIDIsUnknownOnEveryRoute(t *testing.T) {
	x := withRights(t)
	acme, mallory := x.key("acme", rbac.RoleTenantAdmin), x.key("other", rbac.RoleTenantAdmin)
	var made api.CreatedKey
	must.NoError(t, json.Unmarshal([]byte(x.as(acme, "POST", "/v1/keys", `{"name":"ci"}`).body), &made))
	var bound api.Binding
	must.NoError(t, json.Unmarshal([]byte(x.as(acme, "POST", "/v1/bindings", `{"role":"viewer","subjects":[{"kind":"key","id":"`+made.ID+`"}]}`).body), &bound))
	must.Eq(t, 200, x.as(acme, "PUT", "/v1/roles/mine", `{"rules":[]}`).status)
	var sec api.Secret
	must.NoError(t, json.Unmarshal([]byte(x.as(acme, "POST", "/secrets", `{"name":"mine","value":"v"}`).body), &sec))

	real := map[string]string{"{id}": string(testID), "{tid}": "base", "{name}": "base", "{team}": "acme", "{tenant}": "acme", "{key}": made.ID,
		"{role}": "mine", "{binding}": bound.ID, "{bid}": "b", "{hash}": "h", "{what}": "tags", "{node}": "n", "{secret}": sec.SecretID}
	none := map[string]string{"{id}": string(otherID), "{tid}": "nono", "{name}": "nono", "{team}": "nono", "{tenant}": "nono", "{key}": "00000000000000ff",
		"{role}": "nono", "{binding}": "b00000000000000ff", "{bid}": "b", "{hash}": "h", "{what}": "tags", "{node}": "n", "{secret}": "sec_aaaaaaaaaaaaaaaaaaaa"}
	terminal := "-aaaaaaaaaaaaaaaaaaaa"
	checked := 0
	for _, rt := range x.srv.routes() {
		method, pattern, _ := strings.Cut(rt.pattern, " ")
		if !strings.Contains(pattern, "{") || strings.Contains(pattern, "{node}") {
			continue
		}
		fill := func(with map[string]string) string {
			p := pattern
			for name, value := range with {
				if name == "{id}" && strings.Contains(pattern, "/terminals/") {
					value += terminal
				}
				p = strings.ReplaceAll(p, name, value)
			}
			return p
		}
		query := "?path=/a&target=/b"
		body := map[string]string{"PUT /v1/roles/{role}": `{"rules":[]}`}[rt.pattern]
		if body == "" && method != "GET" && method != "DELETE" {
			body = "{}"
		}
		mine, theirs := x.as(mallory, method, fill(none)+query, body), x.as(mallory, method, fill(real)+query, body)
		text := theirs.body
		for name, value := range real {
			text = strings.ReplaceAll(text, value, none[name])
		}
		must.Eq(t, mine.status, theirs.status, must.Sprintf("%s: %s | %s", rt.pattern, mine.body, theirs.body))
		if mine.status >= 400 || !strings.HasPrefix(rt.pattern, "PUT ") { // under a name of acme's everybody may have something of his own
			must.Eq(t, mine.body, text, must.Sprint(rt.pattern))
			if method != "DELETE" || !strings.HasSuffix(pattern, "{role}") && !strings.HasSuffix(pattern, "/v1/templates/{name}") { // he made one just before
				must.Greater(t, 399, theirs.status, must.Sprint(rt.pattern))
			}
		}
		checked++
	}
	must.Greater(t, 60, checked)
	// Whatever was tried, acme has it all.
	must.Eq(t, 200, x.as(acme, "GET", "/sandboxes/"+string(testID), "").status)
	must.StrContains(t, x.as(acme, "GET", "/v1/keys", "").body, made.ID)
	must.StrContains(t, x.as(acme, "GET", "/v1/bindings", "").body, bound.ID)
	must.StrContains(t, x.as(acme, "GET", "/v1/roles/mine", "").body, `"scope":"acme"`)
	must.StrContains(t, x.as(acme, "GET", "/v1/templates/base", "").body, "sha256:aa")
	for _, list := range []string{"/v1/keys", "/v1/bindings", "/v1/roles", "/v1/tenants", "/teams", "/api-keys", "/sandboxes", "/v2/sandboxes", "/templates", "/v1/templates"} {
		a := x.as(mallory, "GET", list, "")
		must.Eq(t, 200, a.status, must.Sprint(a.body))
		must.StrNotContains(t, a.body, "acme", must.Sprint(list))
		must.StrNotContains(t, a.body, made.ID, must.Sprint(list))
	}
}

func TestRights_ofTheBuiltinRoles(t *testing.T) {
	x := withRights(t)
	viewer, developer, operator := x.key("acme", "viewer"), x.key("acme", "developer"), x.key("acme", "operator")
	box := "/sandboxes/" + string(testID)
	must.StrNotContains(t, x.as(viewer, "GET", box, "").body, "envd-token", must.Sprint("who may look may not reach in"))
	must.StrContains(t, x.as(developer, "GET", box, "").body, "envd-token")
	for _, tc := range []struct {
		key, method, path, body string
		status                  int
	}{
		{viewer, "GET", box, "", 200},
		{viewer, "GET", "/v1/openapi.json", "", 200},
		{viewer, "DELETE", box, "", 403},
		{viewer, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 403},
		{viewer, "GET", "/v1" + box + "/envd/files?path=/a", "", 403},
		{viewer, "POST", "/v2" + box + "/connect", "{}", 403},
		{viewer, "GET", "/v1/keys", "", 403},
		{viewer, "GET", "/v1/metrics", "", 403},
		{developer, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 201},
		{developer, "POST", "/v1/keys", `{"name":"x"}`, 403},
		{developer, "POST", "/v1/tenants", `{"id":"x"}`, 403},
		{operator, "POST", "/v2/sandboxes", `{"templateID":"base"}`, 403},
		{operator, "GET", "/v1/metrics", "", 200},
		{operator, "GET", "/v1/operator/snapshot", "", 403},
		{viewer, "GET", "/v1/operator/autopilot/state", "", 403},
		{viewer, "GET", "/v1/operator/autopilot/configuration", "", 403},
		{operator, "PUT", "/v1/operator/autopilot/configuration", `{}`, 403},
		{operator, "GET", "/v1/operator/autopilot/state", "", 501}, // there is no cluster of servers here
		{x.key("acme", rbac.RoleTenantAdmin), "GET", "/v1/operator/snapshot", "", 403},
		{x.key("acme", rbac.RoleTenantAdmin), "PUT", "/v1/operator/snapshot", "x", 403},
		{x.key("acme"), "GET", box, "", 403},
		{x.key("acme"), "GET", "/v1/auth/whoami", "", 200},
		{x.admin, "POST", "/v1/tenants", `{"id":"third"}`, 201},
	} {
		a := x.as(tc.key, tc.method, tc.path, tc.body)
		must.Eq(t, tc.status, a.status, must.Sprintf("%s %s: %s", tc.method, tc.path, a.body))
		if tc.status == 403 {
			must.StrContains(t, a.mustFail(t, 403, api.CodeForbidden), "permission")
		}
	}
}

func TestRights_dependOnTheObject(t *testing.T) {
	x := withRights(t)
	tenantAdmin := x.key("acme", rbac.RoleTenantAdmin)
	must.Eq(t, 200, x.as(tenantAdmin, "PUT", "/v1/roles/dev-only", `{"rules":[
		{"resources":["sandbox"],"actions":["*"],"labels":{"env":"dev"}},
		{"resources":["file"],"actions":["*"],"paths":["/home/**"]},
		{"effect":"deny","resources":["sandbox"],"actions":["delete"]}]}`).status)
	dev := x.key("acme", "dev-only")
	box := sandbox(otherID)
	box.Tenant, box.Metadata = "acme", map[string]string{"env": "dev"}
	x.life.sandboxes[otherID] = box
	must.Eq(t, 403, x.as(dev, "GET", "/sandboxes/"+string(testID), "").status)
	must.Eq(t, 200, x.as(dev, "GET", "/sandboxes/"+string(otherID), "").status)
	x.as(dev, "DELETE", "/sandboxes/"+string(otherID), "").mustFail(t, 403, api.CodeForbidden)
	must.Eq(t, 404, x.as(dev, "GET", "/sandboxes/iccccccccccccccccccccc"[:31], "").status)
	x.as(dev, "POST", "/v2/sandboxes", `{"templateID":"base","metadata":{"env":"prod"}}`).mustFail(t, 403, api.CodeForbidden)
	x.life.nextList = state.List{Sandboxes: []state.Sandbox{x.life.sandboxes[testID], box}, TotalRunning: 2}
	a := x.as(dev, "GET", "/v2/sandboxes", "")
	must.Eq(t, "1", a.header.Get("X-Total-Running"))
	must.StrContains(t, a.body, string(otherID))
	must.StrNotContains(t, a.body, string(testID))
	for path, status := range map[string]int{"/etc/passwd": 403, "/home/../etc/passwd": 403, "/home/user/a": 501, "user/a": 400} { // 501: there is no way to it
		must.Eq(t, status, x.as(dev, "GET", "/v1/sandboxes/"+string(otherID)+"/envd/files?path="+path, "").status, must.Sprint(path))
	}
	x.as(dev, "GET", "/v1/sandboxes/"+string(otherID)+"/archive?path=/", "").mustFail(t, 403, api.CodeForbidden)
	x.as(dev, "POST", "/v1/terminals", `{"sandbox_id":"`+string(testID)+`"}`).mustFail(t, 403, api.CodeForbidden)
	x.as(dev, "GET", "/v1/terminals/"+string(testID)+"-aaaaaaaaaaaaaaaaaaaa", "").mustFail(t, 403, api.CodeForbidden)

	var e api.Explanation
	must.NoError(t, json.Unmarshal([]byte(x.as(dev, "POST", "/v1/auth/explain", `{"resource":"sandbox","action":"delete"}`).body), &e))
	must.False(t, e.Allowed)
	must.Eq(t, "rule 2 of role dev-only denies it (by credential, in tenant acme)", e.Reason)
	must.NoError(t, json.Unmarshal([]byte(x.as(dev, "POST", "/v1/auth/explain", `{"resource":"sandbox","action":"read"}`).body), &e))
	must.True(t, e.Allowed && e.Depends)
	x.as(dev, "POST", "/v1/auth/explain", `{"resource":"moon","action":"read"}`).mustFail(t, 400, api.CodeInvalid)
}

// Nobody gives what he does not have.
func TestRights_cannotBeRaised(t *testing.T) {
	x := withRights(t)
	ta := x.key("acme", rbac.RoleTenantAdmin)
	for body, path := range map[string]string{
		`{"name":"x","roles":["admin"]}`:                                                  "POST /v1/keys",
		`{"name":"x","roles":["viewer"],"everywhere":true}`:                               "POST /v1/keys",
		`{"name":"y","roles":["operator"]}`:                                               "POST /api-keys",
		`{"name":"y","everywhere":true}`:                                                  "POST /api-keys",
		`{"rules":[{"resources":["*"],"actions":["*"]}]}`:                                 "PUT /v1/roles/all",
		`{"parents":["admin"]}`:                                                           "PUT /v1/roles/all",
		`{"everywhere":true,"rules":[]}`:                                                  "PUT /v1/roles/all",
		`{"role":"admin","subjects":[{"kind":"user","id":"corp/me"}]}`:                    "POST /v1/bindings",
		`{"role":"viewer","everywhere":true,"subjects":[{"kind":"user","id":"corp/me"}]}`: "POST /v1/bindings",
		`{"id":"fourth"}`:                                                                 "POST /v1/tenants",
		`{"defaults":{"cpu_millis":1,"memory_mb":1,"disk_mb":1,"timeout_seconds":1}}`:     "PATCH /v1/tenants/acme",
		`{"network_bound":{}}`:                                                            "PATCH /v1/tenants/acme",
		`{}`:                                                                              "POST /v1/tenants/acme/suspend",
	} {
		method, p, _ := strings.Cut(path, " ")
		x.as(ta, method, p, body).mustFail(t, 403, api.CodeForbidden)
	}
	// A key with rights everywhere that was made in acme is not acme's to change or to take away.
	secret, global, err := x.auth.Make(t.Context(), state.Key{Tenant: "acme", Name: "g", Roles: []string{"admin"}, Global: true})
	must.NoError(t, err)
	x.as(ta, "DELETE", "/v1/keys/"+global.ID, "").mustFail(t, 403, api.CodeForbidden)
	x.as(ta, "PATCH", "/v1/keys/"+global.ID, `{"name":"mine"}`).mustFail(t, 403, api.CodeForbidden)
	must.Eq(t, 200, x.as(secret.Key(), "GET", "/v1/tenants/other", "").status)
	// An administrator of one tenant stays one, also with the role admin there.
	local := x.key("acme", "admin")
	x.as(local, "POST", "/v1/tenants", `{"id":"fifth"}`).mustFail(t, 403, api.CodeForbidden)
	x.as(local, "POST", "/v1/keys", `{"name":"x","everywhere":true}`).mustFail(t, 403, api.CodeForbidden)
	x.as(local, "POST", "/api-keys", `{"name":"x","tenant":"other"}`).mustFail(t, 404, api.CodeNotFound)
}

func TestTenantNetwork_isOfTwoWhoDoNotLiftEachOthers(t *testing.T) {
	x := withRights(t)
	ta := x.key("acme", rbac.RoleTenantAdmin)
	const path = "/v1/tenants/acme"
	must.Eq(t, 200, x.as(x.admin, "PATCH", path, `{"network_bound":{"internet":false,"allow":["*.example.com:443"]}}`).status)
	must.Eq(t, 200, x.as(ta, "PUT", path+"/network", `{"deny":["198.51.100.0/24"]}`).status)
	must.StrContains(t, x.as(ta, "GET", path, "").body,
		`"network_bound":{"internet":false,"allow":["*.example.com:443"]},"network":{"deny":["198.51.100.0/24"]}`)
	x.as(x.key("acme", rbac.RoleDeveloper), "PUT", path+"/network", `{}`).mustFail(t, 403, api.CodeForbidden)
	x.as(ta, "PUT", "/v1/tenants/other/network", `{}`).mustFail(t, 404, api.CodeNotFound)
	must.Eq(t, 200, x.as(ta, "PUT", path+"/network", `{}`).status)
	must.StrContains(t, x.as(ta, "GET", path, "").body, `"allow":["*.example.com:443"]},"network":{},`)

	must.StrContains(t, x.as(ta, "PUT", path+"/network", `{"deny":["300.1.1.1"]}`).mustFail(t, 400, api.CodeInvalid), `network.deny: entry "300.1.1.1"`)
	must.StrContains(t, x.as(x.admin, "POST", "/v1/tenants", `{"id":"sixth","network_bound":{"allow":["a b"]}}`).mustFail(t, 400, api.CodeInvalid), `network_bound.allow`)
	must.StrContains(t, x.as(x.admin, "PUT", "/v1/templates/base/network", `{"deny":["tcp://x.y:0"]}`).mustFail(t, 400, api.CodeInvalid), `network.deny`)
	x.as(x.key("acme", rbac.RoleViewer), "PUT", "/v1/templates/base/network", `{}`).mustFail(t, 403, api.CodeForbidden)
	must.StrContains(t, x.as(x.key("acme", rbac.RoleDeveloper), "PUT", "/v1/templates/base/network", `{"deny":["1.1.1.1"]}`).body, `"network":{"deny":["1.1.1.1"]}`)
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63)
	big := `"` + strings.Repeat(long+`","`, 400) + `x.org"`
	must.StrContains(t, x.as(ta, "PUT", path+"/network", `{"deny":[`+big+`]}`).mustFail(t, 400, api.CodeInvalid), "65536 are kept")
}

func TestTenant_lives(t *testing.T) {
	x := withRights(t)
	ta := x.key("acme", rbac.RoleTenantAdmin)
	box := "/sandboxes/" + string(testID)
	x.as(x.admin, "POST", "/v1/tenants", `{"id":"acme"}`).mustFail(t, 409, api.CodeConflict)
	x.as(x.admin, "POST", "/v1/tenants", `{"id":"Not Good"}`).mustFail(t, 400, api.CodeInvalid)
	must.Eq(t, 200, x.as(x.admin, "PATCH", "/v1/tenants/acme", `{"labels":{"tier":"1"},"isolation":{"network":"dedicated","storage":"","compute":""}}`).status)
	must.StrContains(t, x.as(ta, "GET", "/v1/tenants", "").body, `"network":"dedicated"`)
	x.as(ta, "GET", "/v1/tenants/other", "").mustFail(t, 404, api.CodeNotFound)

	must.Eq(t, 200, x.as(x.admin, "POST", "/v1/tenants/acme/suspend", `{"reason":"unpaid"}`).status)
	for _, call := range []string{"POST /v2/sandboxes", "POST /v2" + box + "/connect", "POST /v1/keys", "PUT /v1/roles/x", "POST /v1" + box + "/envd/process.Process/Start"} {
		method, path, _ := strings.Cut(call, " ")
		must.StrContains(t, x.as(ta, method, path, `{"templateID":"base","name":"x"}`).mustFail(t, 403, api.CodeSuspended), "unpaid")
	}
	must.Eq(t, 200, x.as(ta, "GET", box, "").status)
	must.Eq(t, 204, x.as(ta, "DELETE", box, "").status)
	must.Eq(t, 200, x.as(x.admin, "POST", "/v1/tenants/acme/resume", "").status)
	must.Eq(t, 201, x.as(ta, "POST", "/v2/sandboxes", `{"templateID":"base"}`).status)

	x.as(x.admin, "DELETE", "/v1/tenants/acme", "").mustFail(t, 409, api.CodeConflict)
	must.Eq(t, 204, x.as(x.admin, "DELETE", "/v1/tenants/acme?cascade=true", "").status)
	x.as(ta, "GET", "/v2/sandboxes", "").mustFail(t, 401, api.CodeUnauthorized)
	x.as(x.admin, "DELETE", "/v1/tenants/default", "").mustFail(t, 400, api.CodeInvalid)
}

func TestTenant_actingInAnother(t *testing.T) {
	x := withRights(t)
	box := "/sandboxes/" + string(testID)
	must.Eq(t, 404, x.as(x.admin, "GET", box, "").status, must.Sprint("the first key is of the default tenant"))
	must.Eq(t, 200, x.as(x.admin, "GET", box, "", api.TenantHeader, "acme").status)
	must.Eq(t, 200, x.as(x.admin, "GET", box, "", "X-Team-ID", "acme").status)
	x.as(x.admin, "GET", box, "", api.TenantHeader, "nobody").mustFail(t, 404, api.CodeNotFound)
	x.as(x.admin, "GET", box, "", api.TenantHeader, "../x").mustFail(t, 400, api.CodeInvalid)
	x.as(x.admin, "GET", box, "", api.TenantHeader, "acme", "X-Team-ID", "other").mustFail(t, 400, api.CodeInvalid)
	other := x.key("other", rbac.RoleTenantAdmin)
	x.as(other, "GET", box, "", api.TenantHeader, "acme").mustFail(t, 404, api.CodeNotFound)
	// A key that is bound in another tenant may act there, with that role.
	var who api.Whoami
	must.NoError(t, json.Unmarshal([]byte(x.as(other, "GET", "/v1/auth/whoami", "").body), &who))
	must.Eq(t, []string{"other"}, who.Tenants)
	_, err := x.state.Apply(t.Context(), &state.BindingPut{Binding: state.Binding{ID: "b", Tenant: state.Everywhere, Role: "viewer", Subjects: []state.Subject{{Kind: state.SubjectKey, ID: who.KeyID}}}})
	must.NoError(t, err)
	must.Eq(t, 200, x.as(other, "GET", box, "", api.TenantHeader, "acme").status)
	x.as(other, "DELETE", box, "", api.TenantHeader, "acme").mustFail(t, 403, api.CodeForbidden)
	must.Eq(t, 201, x.as(x.admin, "POST", "/api-keys", `{"name":"lease","tenant":"acme","roles":["viewer"]}`).status)
}

// The contract's routes for administrators are for those of all tenants, by either header.
func TestAdmin_ofAllTenants(t *testing.T) {
	x := withRights(t)
	local := x.key("acme", rbac.RoleAdmin)
	for _, call := range []string{
		"POST /admin/teams/acme/sandboxes/kill", "GET /admin/sandboxes/running-counts", "POST /admin/teams/acme/api-keys", "DELETE /admin/teams/acme/api-keys/0000000000000000",
	} {
		method, path, _ := strings.Cut(call, " ")
		body := map[string]string{"POST": `{"name":"x"}`}[method]
		x.as(local, method, path, body).mustFail(t, 403, api.CodeForbidden)
	}
	all := state.List{Sandboxes: []state.Sandbox{x.life.sandboxes[testID]}, TotalRunning: 1}
	x.life.nextList = all // of the tenant that is asked for first; the others have none
	counts := map[string]int{}
	must.NoError(t, json.Unmarshal([]byte(x.do("GET", "/admin/sandboxes/running-counts", "", "X-API-Key", "", "X-Admin-Token", x.admin).body), &counts))
	must.Eq(t, []int{1}, slices.Collect(maps.Values(counts)))
	x.life.nextList = all
	must.Eq(t, `{"killedCount":1,"failedCount":0}`, strings.TrimSpace(x.as(x.admin, "POST", "/admin/teams/acme/sandboxes/kill", "").body))
	x.as(x.admin, "POST", "/admin/teams/nono/sandboxes/kill", "").mustFail(t, 404, api.CodeNotFound)

	var k api.CreatedTeamAPIKey
	a := x.as(x.admin, "POST", "/admin/teams/acme/api-keys", `{"name":"made for acme"}`)
	must.Eq(t, 201, a.status)
	must.NoError(t, json.Unmarshal([]byte(a.body), &k))
	must.StrContains(t, x.as(k.Key, "GET", "/teams", "").body, `"teamID":"acme"`)
	must.StrContains(t, x.do("GET", "/teams", "", "X-API-Key", "", "Authorization", "Bearer "+k.Key).body, k.Key)
	must.Eq(t, 204, x.as(x.admin, "DELETE", "/admin/teams/acme/api-keys/"+k.ID, "").status)
	x.as(k.Key, "GET", "/teams", "").mustFail(t, 401, api.CodeUnauthorized)
}

func TestKeys_areRenamed(t *testing.T) {
	x := withRights(t)
	ta := x.key("acme", rbac.RoleTenantAdmin)
	var k api.CreatedTeamAPIKey
	must.NoError(t, json.Unmarshal([]byte(x.as(ta, "POST", "/api-keys", `{"name":"before"}`).body), &k))
	a := x.as(ta, "PATCH", "/api-keys/"+k.ID, `{"name":"after"}`)
	must.Eq(t, 200, a.status)
	must.StrContains(t, a.body, `"name":"after"`)
	must.StrContains(t, x.as(ta, "GET", "/api-keys", "").body, `"name":"after"`)
	x.as(ta, "PATCH", "/api-keys/"+k.ID, `{}`).mustFail(t, 400, api.CodeInvalid)
	x.as(ta, "PATCH", "/api-keys/"+k.ID, `{"name":"`+strings.Repeat("x", 1000)+`"}`).mustFail(t, 400, api.CodeInvalid)
	x.as(x.key("other", rbac.RoleTenantAdmin), "PATCH", "/api-keys/"+k.ID, `{"name":"mine"}`).mustFail(t, 404, api.CodeNotFound)
	x.as(x.key("acme", rbac.RoleDeveloper), "PATCH", "/api-keys/"+k.ID, `{"name":"mine"}`).mustFail(t, 403, api.CodeForbidden)
}

func TestKeys_liveAndEnd(t *testing.T) {
	x := withRights(t)
	ta := x.key("acme", rbac.RoleTenantAdmin)
	body := fmt.Sprintf(`{"name":"ci","owner":"build","roles":["viewer"],"expires_at":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339))
	var k api.CreatedKey
	must.NoError(t, json.Unmarshal([]byte(x.as(ta, "POST", "/v1/keys", body).body), &k))
	must.Eq(t, "build", k.Owner)
	for _, spelling := range []string{k.Secret, k.SecretE2B} {
		must.Eq(t, 200, x.as(spelling, "GET", "/v2/sandboxes", "").status)
		must.Eq(t, 200, x.do("GET", "/v2/sandboxes", "", "X-API-Key", "", "Authorization", "Bearer "+spelling).status)
	}
	must.NoError(t, x.auth.Flush(t.Context()))
	must.StrContains(t, x.as(ta, "GET", "/v1/keys", "").body, "last_used_at")
	must.StrNotContains(t, x.as(ta, "GET", "/v1/keys", "").body, k.Secret[20:])
	must.Eq(t, 200, x.as(ta, "PATCH", "/v1/keys/"+k.ID, `{"roles":[]}`).status)
	x.as(k.Secret, "GET", "/v2/sandboxes", "").mustFail(t, 403, api.CodeForbidden)
	past := time.Now().Add(-time.Minute).Format(time.RFC3339)
	must.Eq(t, 200, x.as(ta, "PATCH", "/v1/keys/"+k.ID, `{"expires_at":"`+past+`"}`).status)
	x.as(k.Secret, "GET", "/v2/sandboxes", "").mustFail(t, 401, api.CodeUnauthorized)
	x.as(ta, "POST", "/v1/keys", `{"name":"x","expires_at":"`+past+`"}`).mustFail(t, 400, api.CodeInvalid)
	x.as(ta, "POST", "/v1/keys", `{"name":"x","roles":["none"]}`).mustFail(t, 404, api.CodeNotFound)
	must.Eq(t, 204, x.as(ta, "DELETE", "/v1/keys/"+k.ID, "").status)
	x.as(k.Secret, "GET", "/v1/auth/whoami", "").mustFail(t, 401, api.CodeUnauthorized)
}

func TestAuth_failuresAreThrottledAndKeysOfOthersAreNot(t *testing.T) {
	x := withRights(t)
	wrong := "sb_00000000000000aa_" + strings.Repeat("0", 64)
	var last answer
	for range 40 {
		if last = x.as(wrong, "GET", "/v2/sandboxes", ""); last.status == http.StatusTooManyRequests {
			break
		}
		must.StrContains(t, last.mustFail(t, 401, api.CodeUnauthorized), "tried: key")
	}
	last.mustFail(t, 429, api.CodeThrottled)
	must.NotEq(t, "", last.header.Get("Retry-After"))
	must.Eq(t, 204, x.as("", "GET", "/health", "").status, must.Sprint("what needs no key is served"))
}

func TestDecided_isToldEveryDecision(t *testing.T) {
	var told []string
	x := withRights(t, func(c *Config) {
		c.Decided = func(_ *http.Request, who auth.Identity, needs rbac.Permission, d rbac.Decision, _ error) {
			told = append(told, fmt.Sprint(who.Tenant, " ", needs, " ", d.Allowed, " ", d.Role))
		}
	})
	viewer := x.key("acme", "viewer")
	x.as(viewer, "GET", "/v2/sandboxes", "")
	x.as(viewer, "POST", "/v2/sandboxes", "{}")
	must.Eq(t, []string{"acme sandbox:read true viewer", "acme sandbox:create false "}, told)
}
