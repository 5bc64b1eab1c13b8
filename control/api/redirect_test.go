package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// hop is a server that notes the key of every request and answers with what it is told.
type hop struct {
	*httptest.Server
	keys []string
}

func newHop(t *testing.T, h func(w http.ResponseWriter, r *http.Request)) *hop {
	s := &hop{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.keys = append(s.keys, r.Header.Get("X-API-Key"))
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestRedirects_areFollowedSoFar(t *testing.T) {
	n := 0
	s := newHop(t, func(w http.ResponseWriter, r *http.Request) {
		if n--; n < 0 {
			_ = json.NewEncoder(w).Encode(VersionInfo{Version: "there"})
			return
		}
		http.Redirect(w, r, fmt.Sprintf("/hop/%d", n), http.StatusTemporaryRedirect)
	})
	for _, tc := range []struct {
		hops, limit int
		env         string
		want        string // of the error
	}{
		{10, 0, "", ""},
		{11, 0, "", "more than 10 redirects"},
		{3, 2, "9", "more than 2 redirects"},
		{2, 2, "", ""},
		{3, 0, "3", ""},
		{4, 0, "3", "more than 3 redirects"},
		{1, -1, "", "307"},
		{1, 0, "0", "307"},
	} {
		t.Setenv(EnvMaxRedirects, tc.env)
		c, err := New(Config{Address: s.URL, APIKey: "k", MaxRedirects: tc.limit})
		must.NoError(t, err)
		t.Cleanup(c.Close)
		n = tc.hops
		_, err = c.Version(t.Context())
		if tc.want == "" {
			must.NoError(t, err, must.Sprint(tc))
			continue
		}
		must.ErrorContains(t, err, tc.want)
	}
	t.Setenv(EnvMaxRedirects, "many")
	_, err := New(Config{})
	must.ErrorContains(t, err, EnvMaxRedirects)
}

func TestRedirects_credentialsStayWithTheirHost(t *testing.T) {
	bodies := []string{}
	home, other := (*hop)(nil), (*hop)(nil)
	other = newHop(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, home.URL+"/back", http.StatusTemporaryRedirect)
	})
	home = newHop(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		bodies = append(bodies, r.Method+" "+r.URL.Path+" "+string(b))
		switch r.URL.Path {
		case "/v1/terminals":
			http.Redirect(w, r, "/same", http.StatusTemporaryRedirect)
		case "/same":
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		default:
			_ = json.NewEncoder(w).Encode(Terminal{ID: "t"})
		}
	})
	c, err := New(Config{Address: home.URL, APIKey: "the-key", HTTPClient: &http.Client{}})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	_, err = c.CreateTerminal(t.Context(), TerminalRequest{User: "u"})
	must.NoError(t, err)
	must.Eq(t, []string{""}, other.keys)
	must.Eq(t, []string{"the-key", "the-key", ""}, home.keys, must.Sprint("what another host asks for is not done with the key"))
	for _, b := range bodies {
		must.True(t, strings.HasPrefix(b, "POST ") && strings.Contains(b, `"user":"u"`), must.Sprint(b))
	}
}

func TestRedirects_neverFromHTTPSToHTTP(t *testing.T) {
	plain := newHop(t, func(http.ResponseWriter, *http.Request) {})
	s := httptest.NewTLSServer(http.RedirectHandler(plain.URL, http.StatusTemporaryRedirect))
	t.Cleanup(s.Close)
	c, err := New(Config{Address: s.URL, APIKey: "k", HTTPClient: s.Client()})
	must.NoError(t, err)
	_, err = c.Version(t.Context())
	must.ErrorContains(t, err, "from https to http")
	must.SliceEmpty(t, plain.keys)
}
