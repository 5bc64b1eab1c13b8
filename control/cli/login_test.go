package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/login/logintest"
)

// portal is a service that people log in at: it takes tokens, and refuses API keys other than testKey.
type portal struct {
	*httptest.Server

	mu    sync.Mutex
	links []api.AuthLink
	shown []string // the credentials that came
	deny  bool
}

func newPortal(t *testing.T, links ...api.AuthLink) *portal {
	p := &portal{links: links}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/auth/links", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, p.links) })
	mux.HandleFunc("GET /v1/auth/whoami", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		shown := r.Header.Get("X-API-Key")
		p.shown = append(p.shown, shown)
		if p.deny || shown != testKey && strings.Count(shown, ".") != 2 {
			refuse(w, 401, api.CodeUnauthorized, "not valid")
			return
		}
		reply(w, 200, api.Whoami{User: "oidc:corp/alice", Tenant: "acme", Roles: []string{}})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// last is the credential that came last.
func (p *portal) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown[len(p.shown)-1]
}

// visitor is a person at a shell without a key, whose browser is a program that follows what it gets.
func visitor(t *testing.T, address string) *call {
	t.Helper()
	dir := t.TempDir()
	browser := filepath.Join(dir, "browser")
	must.NoError(t, os.WriteFile(browser, []byte("#!/bin/sh\nexec curl -sLo /dev/null \"$1\"\n"), 0o700))
	return &call{dir: t.TempDir(), env: map[string]string{"SOULBOX_ADDR": address, "HOME": dir, "BROWSER": browser}}
}

func TestLogin_isUsedUntilLogout(t *testing.T) {
	i := logintest.New(t)
	p := newPortal(t, api.AuthLink{Name: "corp", Kind: "oidc", Issuer: i.URL, ClientID: logintest.ClientID})
	c := visitor(t, p.URL)
	must.Eq(t, 0, c.run(t, "login"), must.Sprint(c.stderr))
	must.StrContains(t, c.stdout, "You are oidc:corp/alice at "+p.URL+", in tenant acme")
	must.StrContains(t, c.stderr, i.URL+"/authorize?")
	path := filepath.Join(c.env["HOME"], ".config/soulbox/logins.json")
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o600, st.Mode().Perm())
	must.Eq(t, 0, c.run(t, "auth", "whoami"))
	token := p.last()
	must.Eq(t, 2, strings.Count(token, "."))
	for _, out := range []string{c.stdout, c.stderr} {
		must.StrNotContains(t, out, token)
	}

	// A key of the file comes after the login, one of the environment before it.
	must.Eq(t, 0, c.run(t, "config", "set", "api_key", testKey))
	must.Eq(t, 0, c.run(t, "auth", "whoami"))
	must.Eq(t, token, p.last())
	c.env["SOULBOX_API_KEY"] = testKey
	must.Eq(t, 0, c.run(t, "auth", "whoami"))
	must.Eq(t, testKey, p.last())
	delete(c.env, "SOULBOX_API_KEY")

	// Another service never sees the token.
	other := newPortal(t)
	c.env["SOULBOX_ADDR"] = other.URL
	must.Eq(t, 0, c.run(t, "auth", "whoami"))
	must.Eq(t, testKey, other.last())
	c.env["SOULBOX_ADDR"] = p.URL

	must.Eq(t, 0, c.run(t, "logout"))
	must.Eq(t, 0, c.run(t, "auth", "whoami"))
	must.Eq(t, testKey, p.last())
	kept, err := os.ReadFile(path)
	must.NoError(t, err)
	must.StrNotContains(t, string(kept), token)
	must.Eq(t, 0, c.run(t, "logout"))
	must.StrContains(t, c.stderr, "not logged in")
}

func TestLogin_renewsItself(t *testing.T) {
	i := logintest.New(t)
	i.Refresh, i.TTL = true, time.Second
	p := newPortal(t, api.AuthLink{Name: "corp", Kind: "oidc", Issuer: i.URL, ClientID: logintest.ClientID})
	c := visitor(t, p.URL)
	must.Eq(t, 0, c.run(t, "login"), must.Sprint(c.stderr))
	first := p.last()
	i.Lock()
	i.TTL = time.Hour
	i.Unlock()
	for range 2 {
		must.Eq(t, 0, c.run(t, "auth", "whoami"), must.Sprint(c.stderr))
		must.NotEq(t, first, p.last())
	}
	must.Eq(t, 1, i.Renewed())
}

func TestLogin_thatHasEndedIsNotReplacedByAKeyUnasked(t *testing.T) {
	i := logintest.New(t)
	i.TTL = time.Second
	p := newPortal(t, api.AuthLink{Name: "corp", Kind: "oidc", Issuer: i.URL, ClientID: logintest.ClientID})
	c := visitor(t, p.URL)
	must.Eq(t, 0, c.run(t, "login"), must.Sprint(c.stderr))
	must.Eq(t, 0, c.run(t, "config", "set", "api_key", testKey))
	asked := len(p.shown)
	must.Eq(t, 1, c.run(t, "auth", "whoami"))
	must.StrContains(t, c.stderr, "the login has ended")
	must.StrContains(t, c.stderr, "`soulbox login` logs you in again")
	must.Len(t, asked, p.shown)
}

func TestLogin_refusals(t *testing.T) {
	i := logintest.New(t)
	corp := api.AuthLink{Name: "corp", Kind: "oidc", Issuer: i.URL, ClientID: logintest.ClientID}
	partner := corp
	partner.Name = "partner"
	for name, tc := range map[string]struct {
		links []api.AuthLink
		args  []string
		deny  bool
		says  string
	}{
		"no issuer":          {nil, nil, false, "no auth.oidc in its configuration"},
		"which of several":   {[]api.AuthLink{corp, partner}, nil, false, "the service has corp, partner"},
		"none of that name":  {[]api.AuthLink{corp}, []string{"-link=else"}, false, "the service has no \"else\", but corp"},
		"port out of range":  {[]api.AuthLink{corp}, []string{"-callback-port=70000"}, false, "-callback-port: 70000 is not between 1 and 65535"},
		"the service's no":   {[]api.AuthLink{corp}, nil, true, "the issuer has let you in, the service has not"},
		"arguments":          {[]api.AuthLink{corp}, []string{"corp"}, false, "takes no arguments"},
		"a client it is not": {[]api.AuthLink{{Name: "corp", Kind: "oidc", Issuer: i.URL + "/x", ClientID: "x"}}, nil, false, "log in: issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPortal(t, tc.links...)
			p.deny = tc.deny
			c := visitor(t, p.URL)
			must.Eq(t, 1, c.run(t, append([]string{"login"}, tc.args...)...))
			must.StrContains(t, c.stderr, tc.says)
			_, err := os.Stat(filepath.Join(c.env["HOME"], ".config/soulbox/logins.json"))
			must.ErrorIs(t, err, os.ErrNotExist)
		})
	}
	t.Run("one of several, by name", func(t *testing.T) {
		p := newPortal(t, corp, partner)
		c := visitor(t, p.URL)
		must.Eq(t, 0, c.run(t, "login", "-link=partner"), must.Sprint(c.stderr))
	})
}
