package server

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

var update = flag.Bool("update", false, "write the golden files anew")

const openAPIFile = "testdata/openapi.json"

func TestOpenAPI_describesEveryRoute(t *testing.T) {
	h := newHarness(t)
	seen := map[string]bool{}
	for _, rt := range h.srv.routes() {
		d, ok := operations[rt.pattern]
		must.True(t, ok && d.summary != "", must.Sprintf("%s is not in operations", rt.pattern))
		seen[rt.pattern] = true
	}
	for pattern := range operations {
		must.True(t, seen[pattern], must.Sprintf("%s is no route", pattern))
	}
}

// What clients are made from changes on purpose only.
func TestOpenAPI_isWhatWasAgreed(t *testing.T) {
	h := newHarness(t)
	got := h.do("GET", "/v1/openapi.json", "")
	must.Eq(t, 200, got.status)
	var doc map[string]any
	must.NoError(t, json.Unmarshal([]byte(got.body), &doc))
	must.Eq(t, "3.1.0", doc["openapi"].(string))
	doc["info"].(map[string]any)["version"] = "" // it is the program's
	pretty, err := json.MarshalIndent(doc, "", "  ")
	must.NoError(t, err)
	if *update {
		must.NoError(t, os.MkdirAll("testdata", 0o755))
		must.NoError(t, os.WriteFile(openAPIFile, append(pretty, '\n'), 0o644))
	}
	want, err := os.ReadFile(openAPIFile)
	must.NoError(t, err)
	must.Eq(t, strings.TrimSpace(string(want)), string(pretty), must.Sprint("-update writes it anew"))

	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	var refs func(v any)
	refs = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				must.MapContainsKey(t, schemas, strings.TrimPrefix(ref, "#/components/schemas/"))
			}
			for _, e := range v {
				refs(e)
			}
		case []any:
			for _, e := range v {
				refs(e)
			}
		}
	}
	refs(doc)
}
