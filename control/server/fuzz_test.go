package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// What the SDKs encode must come out as it went in, and nothing may crash.
func FuzzMetadataFilter(f *testing.F) {
	for _, seed := range []string{"", "a=b", "a%20b=c%26d", "a=1&a=2", "%zz=b", "=x", "a", "a=b;c=d", "%00=%ff", "a=%25"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := metadataFilter(s)
		if err != nil {
			if e, _ := mapError(err); e.Code != http.StatusBadRequest {
				t.Fatalf("%q: %v has status %d", s, err, e.Code)
			}
		}
		if err == nil {
			if err := state.CheckMetadata(m); err != nil {
				t.Fatalf("%q is taken as %v: %v", s, m, err)
			}
		}
		if state.CheckMetadata(map[string]string{s: s}) != nil {
			return
		}
		pair := url.Values{url.PathEscape(s): {url.PathEscape(s)}}
		q, err := url.ParseQuery(url.Values{"metadata": {pair.Encode()}}.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if m, err = metadataFilter(q.Get("metadata")); err != nil || !reflect.DeepEqual(m, map[string]string{s: s}) {
			t.Fatalf("%q came out as %q, %v", s, m, err)
		}
	})
}

// A body is taken, or refused with a 4xx; what is taken is what encoding/json reads, with no field set twice.
func FuzzCreateBody(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"templateID":"base"}`, `{"templateID":"b","timeout":1e3}`, `{"templateID":"b","timeout":-0}`, `{"templateID":"b","templateid":"c"}`,
		`{"a":{"a":{"a":[[[]]]}}}`, `[]`, `null`, `{"templateID":"b"} x`, `{"a":1,"\u0061":2}`, "\xff", `{"template":"b","cpu":0.5,"memory_mb":1}`,
		`{"network":{"rules":{}}}`, `{"argv":["a"],"input":"AA=="}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(v any, further func() error) {
			err := decodeObject(b, v)
			if err == nil {
				if !json.Valid(b) {
					t.Fatalf("%q is taken, but is not JSON", b)
				}
				err = further()
			}
			if err == nil {
				return
			}
			if e, told := mapError(err); !told || e.Code < 400 || e.Code > 499 || e.Message == "" {
				t.Fatalf("%q: %v is answered with %+v", b, err, e)
			}
		}
		var e2b api.NewSandbox
		check(&e2b, func() error {
			p, err := e2bParams(e2b, 15, true)
			own := e2b.SoulBox != nil // which may leave the timeout to the service
			if err == nil && (p.Template == "" || p.Timeout < 0 || p.Timeout == 0 && !own || p.CPUMillis < 0 || p.MemoryMB < 0 || p.Limits.PIDs < 0) {
				t.Fatalf("%q is taken as %+v", b, p)
			}
			return err
		})
	})
}

func FuzzSandboxID(f *testing.F) {
	for _, seed := range []string{string(testID), string(testID) + "-x", "", "-", "abc", "I", "i\x00", strings.Repeat("a", 300), "é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetPathValue("id", s)
		id, err := sandboxID(r)
		if err != nil {
			if e, _ := mapError(err); e.Code != 400 && e.Code != 404 {
				t.Fatalf("%q: %+v", s, e)
			}
			return
		}
		if again, err := api.ParseSandboxID(string(id)); err != nil || again != id || !strings.HasPrefix(s, string(id)) {
			t.Fatalf("%q is taken as %q", s, id)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"", "limit=5&order=asc", "state=running,paused", "limit=%", "startedAfter=2026-01-01T00:00:00Z", "limit=1&limit=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := parseQuery(&http.Request{URL: &url.URL{RawQuery: s}})
		if err != nil {
			return
		}
		n := q.integer("limit", 100, 1, 100)
		if n < 1 || n > 100 {
			t.Fatalf("%q: limit %d", s, n)
		}
		for _, st := range q.states("state", state.Running, state.Paused) {
			if st != state.Running && st != state.Paused {
				t.Fatalf("%q: state %q", s, st)
			}
		}
		q.time("startedAfter")
		q.order("order")
		q.boolean("follow")
	})
}
