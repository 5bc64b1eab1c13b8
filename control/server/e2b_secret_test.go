package server

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/secret"
	"github.com/soulbox-dev/soulbox/control/state"
)

// secretsOf keeps secrets in a state, with a key of the test's own.
func secretsOf(t *testing.T, st *state.Server) *secret.Service {
	t.Helper()
	ring, err := local.OpenRing(filepath.Join(t.TempDir(), "keys.json"))
	must.NoError(t, err)
	return secret.New(st, ring, nil)
}

func TestE2BSecrets_answerAsTheContract(t *testing.T) {
	x := withRights(t)
	key := x.key("acme", "developer")
	a := x.as(key, "POST", "/secrets", `{"name":"OpenAI","value":"hunter2","metadata":{"team":"a"}}`)
	must.Eq(t, 201, a.status, must.Sprint(a.body))
	must.StrNotContains(t, a.body, "hunter2")
	must.Eq(t, []string{"createdAt", "currentVersion", "metadata", "name", "secretID", "updatedAt"}, keysOf(a.object(t)))
	var made api.Secret
	must.NoError(t, json.Unmarshal([]byte(a.body), &made))
	must.Eq(t, "openai", made.Name)
	must.Eq(t, int64(1), made.CurrentVersion)
	must.Eq(t, []string{"acme/openai"}, x.life.secrets)
	x.as(key, "POST", "/secrets", `{"name":"openai","value":"x"}`).mustFail(t, 409, api.CodeConflict)
	for body, want := range map[string]string{
		`{"value":"x"}`: "name", `{"name":"a b","value":"x"}`: "name", `{"name":"x"}`: "value", `{"name":"x","value":""}`: "value",
		`{"name":"x","value":"v","metadata":{"k":"` + strings.Repeat("x", 1025) + `"}}`: "metadata", `{"name":"` + strings.Repeat("x", 129) + `","value":"v"}`: "name",
	} {
		must.StrContains(t, x.as(key, "POST", "/secrets", body).mustFail(t, 400, api.CodeInvalid), want)
	}
	for _, ref := range []string{made.SecretID, "openai", "OpenAI"} {
		must.Eq(t, 200, x.as(key, "GET", "/secrets/"+ref, "").status)
	}
	a = x.as(key, "POST", "/secrets/openai", `{"value":"hunter3"}`)
	must.Eq(t, 200, a.status)
	must.Eq(t, any(2.0), a.object(t)["currentVersion"])
	must.Eq(t, any(map[string]any{"team": "a"}), a.object(t)["metadata"])
	must.Eq(t, any(map[string]any{}), x.as(key, "POST", "/secrets/openai", `{"value":"hunter4","metadata":{}}`).object(t)["metadata"])
	x.as(key, "POST", "/secrets/none", `{"value":"x"}`).mustFail(t, 404, api.CodeNotFound)

	for _, name := range []string{"b", "c"} {
		must.Eq(t, 201, x.as(key, "POST", "/secrets", `{"name":"`+name+`","value":"x"}`).status)
	}
	var names []string
	for token := ""; ; {
		a := x.as(key, "GET", "/secrets?limit=2&nextToken="+token, "")
		must.Eq(t, 200, a.status)
		var page []api.Secret
		must.NoError(t, json.Unmarshal([]byte(a.body), &page))
		for _, s := range page {
			names = append(names, s.Name)
		}
		if token = a.header.Get("X-Next-Token"); token == "" {
			break
		}
	}
	must.Eq(t, []string{"c", "b", "openai"}, names)
	x.as(key, "GET", "/secrets?limit=101", "").mustFail(t, 400, api.CodeInvalid)
	x.as(key, "GET", "/secrets?nextToken=x", "").mustFail(t, 400, api.CodeInvalid)
	must.Eq(t, 204, x.as(key, "DELETE", "/secrets/b", "").status)
	x.as(key, "DELETE", "/secrets/b", "").mustFail(t, 404, api.CodeNotFound)
	newHarness(t).do("POST", "/secrets", `{"name":"a","value":"b"}`).mustFail(t, 501, codeUnsupported)
}

// Whoever may make sandboxes sends a secret wherever he likes, so that is a right of its own.
func TestE2BSecrets_areUsedByThoseWhoMay(t *testing.T) {
	x := withRights(t)
	admin := x.key("acme", "tenant-admin")
	must.Eq(t, 201, x.as(admin, "POST", "/secrets", `{"name":"prod","value":"hunter2"}`).status)
	must.Eq(t, 201, x.as(admin, "POST", "/secrets", `{"name":"dev","value":"x"}`).status)
	a := x.as(admin, "PUT", "/v1/roles/runner", `{"rules":[{"resources":["sandbox","network"],"actions":["*"]},
		{"resources":["secret"],"actions":["execute"],"names":["dev"]}]}`)
	must.Eq(t, 200, a.status, must.Sprint(a.body))
	runner, viewer := x.key("acme", "runner"), x.key("acme", "viewer")
	rules := func(value string) string {
		return `"rules":{"api.example.com":[{"transform":{"headers":{"X":"` + value + `"}}}]}`
	}
	create := func(value string) string { return `{"templateID":"base","network":{` + rules(value) + `}}` }
	must.Eq(t, 201, x.as(runner, "POST", "/v2/sandboxes", create("${e2b.secrets.dev}")).status)
	for _, value := range []string{"${e2b.secrets.prod}", "${e2b.secrets.PROD}", `\u0024{e2b.secrets.prod}`, "${e2b.secrets.dev} ${e2b.secrets.prod}", "${e2b.secrets.none}"} {
		x.as(runner, "POST", "/v2/sandboxes", create(value)).mustFail(t, 403, api.CodeForbidden)
		x.as(runner, "PUT", "/sandboxes/"+string(testID)+"/network", "{"+rules(value)+"}").mustFail(t, 403, api.CodeForbidden)
	}
	must.Eq(t, 204, x.as(runner, "PUT", "/sandboxes/"+string(testID)+"/network", "{"+rules("${e2b.secrets.dev}")+"}").status)
	must.Eq(t, 201, x.as(admin, "POST", "/v2/sandboxes", create("${e2b.secrets.none}")).status, must.Sprint("whether it exists is told when it is used"))

	must.Eq(t, 200, x.as(viewer, "GET", "/secrets", "").status)
	x.as(viewer, "POST", "/secrets", `{"name":"a","value":"b"}`).mustFail(t, 403, api.CodeForbidden)
	x.as(viewer, "POST", "/secrets/prod", `{"value":"b"}`).mustFail(t, 403, api.CodeForbidden)
	x.as(viewer, "DELETE", "/secrets/prod", "").mustFail(t, 403, api.CodeForbidden)
	x.as(runner, "GET", "/secrets", "").mustFail(t, 403, api.CodeForbidden)
	x.as(x.key("other", "tenant-admin"), "GET", "/secrets/prod", "").mustFail(t, 404, api.CodeNotFound)
}
