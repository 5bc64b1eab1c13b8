package edge

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys/local"
)

func TestLinks_areGoodForWhatTheySayOnly(t *testing.T) {
	ring, err := local.OpenRing(filepath.Join(t.TempDir(), "ring.json"))
	must.NoError(t, err)
	now := time.Unix(1_800_000_000, 0)
	l := Links{Ring: ring, Now: func() time.Time { return now }}
	q, version, err := l.Query(Link{Sandbox: boxID, Operation: "read", Path: "/a b/../c", User: "user", Expires: now.Add(time.Minute)})
	must.NoError(t, err)
	verify := func(method string, q url.Values) error {
		r := httptest.NewRequest(method, "/files?"+q.Encode(), nil)
		id, err := l.Verify(r)
		if err == nil {
			must.Eq(t, boxID, id)
		}
		return err
	}
	must.NoError(t, verify(http.MethodGet, q))
	must.NoError(t, verify(http.MethodHead, q))
	for name, change := range map[string]func(url.Values) string{
		"another path":          func(q url.Values) string { q.Set("path", "/a b/c"); return "GET" },
		"the path encoded once": func(q url.Values) string { q.Set("path", url.QueryEscape(q.Get("path"))); return "GET" },
		"another user":          func(q url.Values) string { q.Set("username", "root"); return "GET" },
		"no user":               func(q url.Values) string { q.Del("username"); return "GET" },
		"another sandbox":       func(q url.Values) string { q.Set("sandbox", string(otherID)); return "GET" },
		"a client id behind it": func(q url.Values) string { q.Set("sandbox", string(boxID)+"-x"); return "GET" },
		"a later expiry":        func(q url.Values) string { q.Set("signature_expiration", "1900000000"); return "GET" },
		"no expiry":             func(q url.Values) string { q.Del("signature_expiration"); return "GET" },
		"to write":              func(url.Values) string { return "POST" },
		"to delete":             func(url.Values) string { return "DELETE" },
		"two paths":             func(q url.Values) string { q.Add("path", "/etc/shadow"); return "GET" },
		"two users":             func(q url.Values) string { q.Add("username", "root"); return "GET" },
		"another version": func(q url.Values) string {
			q.Set("signature", strings.Replace(q.Get("signature"), "v2.1.", "v2.2.", 1))
			return "GET"
		},
		"a short signature": func(q url.Values) string { q.Set("signature", q.Get("signature")[:20]); return "GET" },
		"no signature":      func(q url.Values) string { q.Set("signature", "v2.1."); return "GET" },
		"no form":           func(q url.Values) string { q.Set("signature", "v2."); return "GET" },
	} {
		t.Run(name, func(t *testing.T) {
			doctored := url.Values{}
			for k, v := range q {
				doctored[k] = append([]string(nil), v...)
			}
			method := change(doctored)
			must.ErrorIs(t, verify(method, doctored), errLink)
		})
	}
	_, err = ring.Rotate(t.Context())
	must.NoError(t, err)
	must.NoError(t, verify(http.MethodGet, q), must.Sprint("an older version is good until it is revoked"))
	now = now.Add(time.Minute)
	must.ErrorContains(t, verify(http.MethodGet, q), "expired")
	now = now.Add(-time.Second)
	must.NoError(t, ring.Revoke(t.Context(), version))
	must.ErrorIs(t, verify(http.MethodGet, q), errLink)
}

func FuzzLinks(f *testing.F) {
	ring, err := local.OpenRing(filepath.Join(f.TempDir(), "ring.json"))
	must.NoError(f, err)
	l := Links{Ring: ring}
	q, _, err := l.Query(Link{Sandbox: boxID, Operation: "write", Path: "x", Expires: time.Unix(1_800_000_000, 0)})
	must.NoError(f, err)
	f.Add(q.Encode())
	f.Add("signature=v2.1.x&sandbox=" + string(boxID) + "&path=a&signature_expiration=99999999999")
	f.Fuzz(func(t *testing.T, query string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/files", RawQuery: query}}
		if _, err := l.Verify(r); err == nil {
			t.Fatalf("%q is accepted", query)
		}
	})
}
