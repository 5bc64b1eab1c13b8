package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/cli/login/logintest"
)

// browse is a login with the person's browser played by do, which gets the URL that is shown.
func browse(t *testing.T, i *logintest.Issuer, do func(at string)) (Login, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	return Run(ctx, Config{Issuer: i.URL, ClientID: logintest.ClientID, Scopes: []string{"groups"}, Show: func(at string) error {
		wg.Go(func() { do(at) })
		return nil
	}})
}

func TestRun_givesWhatTheIssuerSays(t *testing.T) {
	i := logintest.New(t)
	i.Refresh = true
	var status int
	var body string
	l, err := browse(t, i, func(at string) { _, status, body = logintest.Browse(t, at) })
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, status)
	must.StrContains(t, body, "You are logged in")
	must.Eq(t, "alice", l.Subject)
	must.NotEq(t, "", l.RefreshToken)
	must.Eq(t, 2, strings.Count(l.IDToken, "."))
	must.False(t, l.Due(time.Now()))
	must.True(t, l.Due(l.ExpiresAt.Add(-time.Second)))
	seen := i.Seen()
	must.Eq(t, "S256", seen.Get("code_challenge_method"))
	must.Eq(t, "openid groups", seen.Get("scope"))
	must.StrHasPrefix(t, "http://127.0.0.1:", seen.Get("redirect_uri"))
	for _, hidden := range []string{l.IDToken, l.RefreshToken} {
		must.StrNotContains(t, fmt.Sprintf("%v %+v %#v", l, l, l), hidden)
	}
}

func TestRun_refusesTokensThatAreNotForIt(t *testing.T) {
	past := time.Now().Add(-time.Hour).Unix()
	for name, change := range map[string]func(*logintest.Issuer){
		"nonce of another login": func(i *logintest.Issuer) { i.Claims["nonce"] = "n0nce" },
		"no nonce":               func(i *logintest.Issuer) { i.Claims["nonce"] = nil },
		"another audience":       func(i *logintest.Issuer) { i.Claims["aud"] = "else" },
		"another issuer":         func(i *logintest.Issuer) { i.Claims["iss"] = "https://else.example" },
		"expired":                func(i *logintest.Issuer) { i.Claims["exp"] = past },
		"for another party":      func(i *logintest.Issuer) { i.Claims["azp"] = "else" },
		"no subject":             func(i *logintest.Issuer) { i.Claims["sub"] = nil },
	} {
		t.Run(name, func(t *testing.T) {
			i := logintest.New(t)
			change(i)
			var status int
			_, err := browse(t, i, func(at string) { _, status, _ = logintest.Browse(t, at) })
			must.ErrorContains(t, err, "issuer "+i.URL)
			must.Eq(t, http.StatusBadRequest, status)
		})
	}
}

func TestRun_theIssuersRefusalIsTold(t *testing.T) {
	i := logintest.New(t)
	i.Deny = "access_denied"
	_, err := browse(t, i, func(at string) { logintest.Browse(t, at) })
	must.ErrorContains(t, err, "access_denied: not today")
}

// A page in the person's browser can send anything to the callback. Only the answer with the state of this login counts, and once.
func TestRun_strangersAnswersChangeNothing(t *testing.T) {
	i := logintest.New(t)
	var got []int
	var callback string
	l, err := browse(t, i, func(at string) {
		u, err := url.Parse(at)
		must.NoError(t, err)
		back := u.Query().Get("redirect_uri")
		for _, q := range []string{"", "?state=&code=x", "?state=wrong&code=x", "?state=wrong&error=access_denied", "?code=x"} {
			_, status, body := logintest.Browse(t, back+q)
			got = append(got, status)
			must.StrContains(t, body, "not an answer")
		}
		resp, err := http.Post(back+"?state="+u.Query().Get("state"), "text/plain", nil)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		got = append(got, resp.StatusCode)
		callback, _, _ = logintest.Browse(t, at)
	})
	must.NoError(t, err)
	must.Eq(t, "alice", l.Subject)
	must.Eq(t, []int{400, 400, 400, 400, 400, 405}, got)
	_, err = http.Get(callback)
	must.Error(t, err, must.Sprint("the callback ends with the login"))
}

// The code of one login is worth nothing in another one: neither its state, nor its verifier, nor a second use.
func TestRun_aCodeIsNotReplayed(t *testing.T) {
	i := logintest.New(t)
	var first string
	_, err := browse(t, i, func(at string) { first, _, _ = logintest.Browse(t, at) })
	must.NoError(t, err)
	old, err := url.Parse(first)
	must.NoError(t, err)
	_, err = browse(t, i, func(at string) {
		u, err := url.Parse(at)
		must.NoError(t, err)
		back := u.Query().Get("redirect_uri")
		_, status, _ := logintest.Browse(t, back+"?"+old.RawQuery) // with its own state
		must.Eq(t, http.StatusBadRequest, status)
		q := url.Values{"state": {u.Query().Get("state")}, "code": {old.Query().Get("code")}}
		_, status, _ = logintest.Browse(t, back+"?"+q.Encode()) // with the state of this one
		must.Eq(t, http.StatusBadRequest, status)
	})
	must.ErrorContains(t, err, "invalid_grant")
}

func TestRun_endsWithItsTimeAndItsCaller(t *testing.T) {
	i := logintest.New(t)
	cfg := Config{Issuer: i.URL, ClientID: logintest.ClientID, Wait: 1500 * time.Millisecond, Show: func(string) error { return nil }}
	_, err := Run(t.Context(), cfg)
	must.ErrorContains(t, err, "nobody has logged in")
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Wait, cfg.Show = time.Minute, func(string) error { cancel(); return nil }
	_, err = Run(ctx, cfg)
	must.ErrorIs(t, err, context.Canceled)
	cfg.Issuer = i.URL + "/else"
	_, err = Run(t.Context(), cfg)
	must.ErrorContains(t, err, "issuer "+cfg.Issuer)
}

const service = "https://sandboxes.example.com"

func TestStore_isItsOwnersAlone(t *testing.T) {
	dir := t.TempDir()
	s := NewStore(filepath.Join(dir, "soulbox", "config.hcl"))
	_, ok, err := s.Get(service)
	must.NoError(t, err)
	must.False(t, ok)
	want := Login{Link: "corp", Subject: "alice", IDToken: "a.b.c", ExpiresAt: time.Now().Add(time.Hour).UTC().Truncate(time.Second)}
	must.NoError(t, s.Put(t.Context(), service, want))
	got, ok, err := s.Get(service)
	must.NoError(t, err)
	must.True(t, ok)
	must.Eq(t, want, got)
	_, ok, err = s.Get("https://else.example")
	must.NoError(t, err)
	must.False(t, ok)
	st, err := os.Stat(s.Path())
	must.NoError(t, err)
	must.Eq(t, 0o600, st.Mode().Perm())
	must.NoError(t, os.Chmod(s.Path(), 0o640))
	_, _, err = s.Get(service)
	must.ErrorContains(t, err, "chmod 600")
	must.NoError(t, os.Chmod(s.Path(), 0o600))
	was, err := s.Remove(t.Context(), service)
	must.NoError(t, err)
	must.True(t, was)
	was, err = s.Remove(t.Context(), service)
	must.NoError(t, err)
	must.False(t, was)
	for _, damaged := range []string{"", "{", `{"version":2,"logins":{}}`} {
		must.NoError(t, os.WriteFile(s.Path(), []byte(damaged), 0o600))
		must.ErrorContains(t, s.Put(t.Context(), service, want), "logout -all")
	}
	must.NoError(t, s.Clear())
	must.NoError(t, s.Put(t.Context(), service, want))
}

// due is a login that has to be renewed.
func due(t *testing.T, i *logintest.Issuer) (*Store, Login) {
	t.Helper()
	i.Lock()
	i.Refresh, i.TTL = true, time.Second
	i.Unlock()
	l, err := browse(t, i, func(at string) { logintest.Browse(t, at) })
	must.NoError(t, err)
	must.True(t, l.Due(time.Now()))
	i.Lock()
	i.TTL = time.Hour
	i.Unlock()
	s := NewStore(filepath.Join(t.TempDir(), "config.hcl"))
	must.NoError(t, s.Put(t.Context(), service, l))
	return s, l
}

func TestStore_renewsOnceForManyPrograms(t *testing.T) {
	i := logintest.New(t)
	s, old := due(t, i)
	var wg sync.WaitGroup
	tokens := make([]string, 8)
	for n := range tokens {
		wg.Go(func() {
			l, ok, err := (&Store{s.Path()}).Fresh(t.Context(), service, time.Now())
			if err != nil || !ok {
				t.Error(err, ok)
			}
			tokens[n] = l.IDToken
		})
	}
	wg.Wait()
	must.Eq(t, 1, i.Renewed(), must.Sprint("a second use of a refresh token is a theft for the issuer"))
	kept, _, err := s.Get(service)
	must.NoError(t, err)
	must.NotEq(t, old.RefreshToken, kept.RefreshToken)
	for _, got := range tokens {
		must.Eq(t, kept.IDToken, got)
	}
}

func TestStore_whatIsNotRenewed(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(i *logintest.Issuer, l *Login)
		ended  bool
		says   string
	}{
		"no refresh token":      {func(_ *logintest.Issuer, l *Login) { l.RefreshToken = "" }, true, "renews none"},
		"unknown refresh token": {func(_ *logintest.Issuer, l *Login) { l.RefreshToken = "x" }, true, "does not renew"},
		"without an ID token":   {func(i *logintest.Issuer, _ *Login) { i.NoNew = true }, true, "without a new ID token"},
		"somebody else's":       {func(i *logintest.Issuer, _ *Login) { i.Claims["sub"] = "mallory" }, false, "somebody else's"},
		"for somebody else":     {func(i *logintest.Issuer, _ *Login) { i.Claims["aud"] = []string{logintest.ClientID, "else"} }, false, "somebody else's"},
		"the issuer is away":    {func(_ *logintest.Issuer, l *Login) { l.Issuer = "http://127.0.0.1:1" }, false, "issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			i := logintest.New(t)
			s, l := due(t, i)
			i.Lock()
			tc.change(i, &l)
			i.Unlock()
			must.NoError(t, s.Put(t.Context(), service, l))
			_, _, err := s.Fresh(t.Context(), service, time.Now())
			must.ErrorContains(t, err, tc.says)
			must.Eq(t, tc.ended, errors.Is(err, ErrEnded))
			kept, ok, err := s.Get(service)
			must.NoError(t, err)
			must.True(t, ok)
			must.Eq(t, l, kept)
		})
	}
}
