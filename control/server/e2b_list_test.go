package server

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

var bothStates = []state.SandboxState{state.Running, state.Paused}

func TestE2BListV2_readsItsQuery(t *testing.T) {
	base := state.Filter{Tenant: "a", States: bothStates}
	with := func(change func(*state.Filter)) state.Filter {
		f := base
		change(&f)
		return f
	}
	for name, tc := range map[string]struct {
		query string
		want  listCall
	}{
		"nothing": {"", listCall{base, state.Descending, state.Page{Limit: 100}}},
		"metadata as the SDKs encode it": {"metadata=a%252520b%3Dc%252526d",
			listCall{with(func(f *state.Filter) { f.Metadata = map[string]string{"a b": "c&d"} }), state.Descending, state.Page{Limit: 100}}},
		"metadata by hand": {"metadata=a%3Db%26c%3Dd",
			listCall{with(func(f *state.Filter) { f.Metadata = map[string]string{"a": "b", "c": "d"} }), state.Descending, state.Page{Limit: 100}}},
		"metadata unescaped": {"metadata=a=b",
			listCall{with(func(f *state.Filter) { f.Metadata = map[string]string{"a": "b"} }), state.Descending, state.Page{Limit: 100}}},
		"states":          {"state=paused", listCall{with(func(f *state.Filter) { f.States = []state.SandboxState{state.Paused} }), state.Descending, state.Page{Limit: 100}}},
		"states as list":  {"state=running,paused", listCall{base, state.Descending, state.Page{Limit: 100}}},
		"states repeated": {"state=running&state=paused", listCall{base, state.Descending, state.Page{Limit: 100}}},
		"the rest": {"order=asc&limit=7&nextToken=tok&template=base&startedAfter=2026-11-23T20:00:00Z", listCall{with(func(f *state.Filter) {
			f.Template, f.StartedAfter = "base", testTime
		}), state.Ascending, state.Page{Limit: 7, Token: "tok"}}},
		"unknown parameters": {"whatever=1", listCall{base, state.Descending, state.Page{Limit: 100}}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			a := h.do("GET", "/v2/sandboxes?"+tc.query, "")
			must.Eq(t, http.StatusOK, a.status, must.Sprint(a.body))
			must.Eq(t, "[]\n", a.body, must.Sprint("an empty list is a list"))
			must.Eq(t, []listCall{tc.want}, h.life.lists)
		})
	}
}

func TestE2BListV2_refusesBadQueries(t *testing.T) {
	for name, tc := range map[string]struct{ query, field string }{
		"limit 0":             {"limit=0", "limit"},
		"limit 101":           {"limit=101", "limit"},
		"limit negative":      {"limit=-5", "limit"},
		"limit 2^63":          {"limit=9223372036854775808", "limit"},
		"limit a word":        {"limit=ten", "limit"},
		"limit empty":         {"limit=", "limit"},
		"limit twice":         {"limit=1&limit=2", "limit"},
		"state unknown":       {"state=stopped", "state"},
		"state empty":         {"state=", "state"},
		"order unknown":       {"order=up", "order"},
		"startedAfter":        {"startedAfter=yesterday", "startedAfter"},
		"metadata malformed":  {"metadata=%25zz%3Db", "metadata"},
		"metadata two values": {"metadata=a%3D1%26a%3D2", "metadata"},
		"metadata empty key":  {"metadata=%3Db", "metadata"},
		"metadata NUL":        {"metadata=a%3D%252500", "metadata"},
		"query malformed":     {"limit=%zz", "query"},
		"semicolon":           {"a=1;b=2", "query"},
		"token too long":      {"nextToken=" + strings.Repeat("a", 600), "nextToken"},
		"template NUL":        {"template=a%00b", "template"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			msg := h.do("GET", "/v2/sandboxes?"+tc.query, "").mustFail(t, 400, api.CodeInvalid)
			must.StrContains(t, msg, tc.field)
			must.SliceEmpty(t, h.life.lists)
		})
	}
	h := newHarness(t)
	h.do("GET", "/v2/sandboxes?x="+strings.Repeat("a", maxQueryBytes), "").mustFail(t, 414, api.CodeTooLarge)
}

func TestE2BListV2_answersAPage(t *testing.T) {
	h := newHarness(t)
	paused := sandbox(otherID)
	paused.State, paused.Metadata, paused.StartedAt = state.Paused, nil, time.Time{}
	h.life.nextList = state.List{Sandboxes: []state.Sandbox{sandbox(testID), paused}, NextToken: "next", TotalRunning: 42}
	a := h.do("GET", "/v2/sandboxes", "")
	must.Eq(t, http.StatusOK, a.status)
	must.Eq(t, "next", a.header.Get("X-Next-Token"))
	must.Eq(t, "42", a.header.Get("X-Total-Running"))
	var got []map[string]any
	must.NoError(t, json.Unmarshal([]byte(a.body), &got))
	must.Eq(t, []map[string]any{
		{
			"templateID": "base", "alias": "base", "sandboxID": string(testID), "clientID": clientID,
			"startedAt": "2026-11-23T20:00:01Z", "endAt": "2026-11-23T20:01:00Z", "cpuCount": 2.0, "memoryMB": 512.0, "diskSizeMB": 1024.0,
			"metadata": map[string]any{"k": "v"}, "state": "running", "envdVersion": "0.6.13",
		},
		{
			"templateID": "base", "alias": "base", "sandboxID": string(otherID), "clientID": clientID,
			"startedAt": "2026-11-23T20:00:00Z", "endAt": "2026-11-23T20:01:00Z", "cpuCount": 2.0, "memoryMB": 512.0, "diskSizeMB": 1024.0,
			"state": "paused", "envdVersion": "0.6.13",
		},
	}, got)

	a = h.do("GET", "/v2/sandboxes", "")
	_, has := a.header["X-Next-Token"]
	must.False(t, has, must.Sprint("clients page on until the header is missing"))
	must.Eq(t, "0", a.header.Get("X-Total-Running"))
}

func TestE2BListV1_answersAllRunningOnes(t *testing.T) {
	h := newHarness(t)
	h.life.nextList = state.List{Sandboxes: []state.Sandbox{sandbox(testID)}, NextToken: "more"}
	a := h.do("GET", "/sandboxes?metadata="+url.QueryEscape("a=b"), "")
	must.Eq(t, http.StatusOK, a.status)
	running := state.Filter{Tenant: "a", States: []state.SandboxState{state.Running}, Metadata: map[string]string{"a": "b"}}
	must.Eq(t, []listCall{
		{running, state.Descending, state.Page{Limit: state.MaxPage}},
		{running, state.Descending, state.Page{Limit: state.MaxPage, Token: "more"}},
	}, h.life.lists)
	h.do("GET", "/sandboxes?metadata=%25zz", "").mustFail(t, 400, api.CodeInvalid)
}

// The Go client and the SDKs encode the filter the same way.
func TestList_theGoClientsMetadataArrives(t *testing.T) {
	h := newHarness(t)
	want := map[string]string{"a b": "c&d", "100%": "+=;", "ü": "\"\n"}
	_, err := h.client().ListSandboxes(t.Context(), api.ListOptions{Metadata: want})
	must.NoError(t, err)
	must.Eq(t, want, h.life.lists[0].Filter.Metadata)
}
