package single

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// asked is the answer to a request.
type asked struct {
	status int
	body   string
}

func (a asked) into(t *testing.T, v any) {
	t.Helper()
	must.NoError(t, json.Unmarshal([]byte(a.body), v), must.Sprint(a))
}

// ask sends a request, with a key where there is one and headers as name, value pairs.
func (m *machine) ask(t *testing.T, key, method, url, body string, headers ...string) asked {
	t.Helper()
	if strings.HasPrefix(url, "/") {
		url = "http://" + m.listen + url
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	must.NoError(t, err)
	if key != "" {
		r.Header.Set("X-API-Key", key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return asked{resp.StatusCode, string(b)}
}

// TestSuspend_aTenantLooksAndCleansUpAndNoMore is what docs/identity.md promises, with sandboxes that really run, and what follows for those who come by
// other ways than the API: links, the token of a sandbox, its ports.
func TestSuspend_aTenantLooksAndCleansUpAndNoMore(t *testing.T) {
	p := startPair(t)
	var made struct {
		ID     string `json:"id"`
		Secret string `json:"secret"`
	}
	asked{body: p.soulbox(t, "key", "create", "-json", "-role", "developer", "dev")}.into(t, &made)
	dev := made.Secret
	type box struct {
		ID    string `json:"sandboxID"`
		Token string `json:"envdAccessToken"`
	}
	create := func(more string) (b box) {
		t.Helper()
		a := p.ask(t, dev, "POST", "/v2/sandboxes", `{"templateID":"base","timeout":3600`+more+`}`)
		must.Eq(t, 201, a.status, must.Sprint(a))
		a.into(t, &b)
		return b
	}
	awake, asleep, spare := create(""), create(`,"autoPause":true,"autoResume":{"enabled":true}`), create("")
	p.soulbox(t, "exec", awake.ID, "--", "bash", "-c", "echo here > page; (python3 -m http.server 8000 >/dev/null 2>&1 &)")
	port := func(b box) asked {
		return p.ask(t, "", "GET", "/page", "", "E2b-Sandbox-Id", b.ID, "E2b-Sandbox-Port", "8000")
	}
	poll(t, "the server inside", func() error {
		if a := port(awake); a.status != 200 || a.body != "here\n" {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	read := strings.TrimSpace(p.soulbox(t, "link", "create", awake.ID, "page"))
	write := strings.TrimSpace(p.soulbox(t, "link", "create", "-op=write", awake.ID, "written"))
	must.Eq(t, 204, p.ask(t, dev, "POST", "/sandboxes/"+asleep.ID+"/pause", "").status)
	envd := func(method, path, body string) asked {
		return p.ask(t, "", method, path, body, "E2b-Sandbox-Id", awake.ID, "E2b-Sandbox-Port", "49983", "X-Access-Token", awake.Token)
	}
	const mkdir = "/filesystem.Filesystem/MakeDir"
	must.Eq(t, 200, envd("POST", mkdir, `{"path":"before"}`).status)

	p.soulbox(t, "tenant", "suspend", "-reason", "unpaid", "default")
	for name, a := range map[string]asked{
		"create":                p.ask(t, dev, "POST", "/v2/sandboxes", `{"templateID":"base"}`),
		"resume":                p.ask(t, dev, "POST", "/sandboxes/"+asleep.ID+"/resume", `{}`),
		"connect":               p.ask(t, dev, "POST", "/sandboxes/"+asleep.ID+"/connect", `{"timeout":60}`),
		"pause":                 p.ask(t, dev, "POST", "/sandboxes/"+spare.ID+"/pause", ""),
		"timeout":               p.ask(t, dev, "POST", "/sandboxes/"+awake.ID+"/timeout", `{"timeout":60}`),
		"snapshot":              p.ask(t, dev, "POST", "/v1/snapshots", `{"sandbox":"`+awake.ID+`"}`),
		"link":                  p.ask(t, dev, "POST", "/v1/sandboxes/"+awake.ID+"/links", `{"operation":"read","path":"page"}`),
		"key":                   p.ask(t, p.key, "POST", "/v1/keys", `{"name":"another"}`),
		"exec through the node": envd("POST", "/process.Process/Start", ""),
		"a folder through it":   envd("POST", mkdir, `{"path":"after"}`),
		"a link that writes":    p.ask(t, "", "POST", write, "x", "Content-Type", "application/octet-stream"),
	} {
		must.Eq(t, 403, a.status, must.Sprint(name, a))
		must.StrContains(t, a.body, "suspended", must.Sprint(name))
	}
	_, stderr, code := p.trySoulbox(t, "exec", awake.ID, "--", "true")
	must.NotEq(t, 0, code)
	must.StrContains(t, stderr, "tenant default is suspended: unpaid")
	knock := port(asleep)
	must.Eq(t, 403, knock.status, must.Sprint(knock))
	must.StrContains(t, knock.body, "paused and cannot be resumed now", must.Sprint("why is not the visitor's business"))

	// It may look, and what runs goes on, for those whom it serves.
	must.StrContains(t, p.ask(t, dev, "GET", "/v2/sandboxes", "").body, awake.ID)
	must.StrContains(t, p.ask(t, dev, "GET", "/sandboxes/"+asleep.ID, "").body, "paused")
	must.Eq(t, asked{200, "here\n"}, port(awake))
	must.Eq(t, asked{200, "here\n"}, p.ask(t, "", "GET", read, ""))
	// And clean up.
	must.Eq(t, 204, p.ask(t, dev, "DELETE", "/sandboxes/"+spare.ID, "").status)

	p.soulbox(t, "tenant", "resume", "default")
	must.Eq(t, 200, envd("POST", mkdir, `{"path":"after"}`).status)
	must.Eq(t, 201, p.ask(t, dev, "POST", "/sandboxes/"+asleep.ID+"/resume", `{"timeout":600}`).status)
	must.Eq(t, "alive\n", p.soulbox(t, "exec", asleep.ID, "--", "echo", "alive"))
	out, _, code := p.trySoulbox(t, "exec", awake.ID, "--", "ls", "written")
	must.NotEq(t, 0, code, must.Sprint("nothing was written meanwhile: ", out))
	create("")

	p.soulbox(t, "key", "revoke", made.ID)
	must.Eq(t, 401, p.ask(t, dev, "GET", "/v2/sandboxes", "").status)
	p.soulbox(t, "sandbox", "destroy", "-all", "-yes")
	p.host().NothingLeft(t)
}
