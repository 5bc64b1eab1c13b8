package server

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestTags_areAssignedAndRemoved(t *testing.T) {
	f := &fakeTemplates{}
	h := newHarness(t, func(c *Config) { c.Templates = f })
	a := h.do("POST", "/templates/tags", `{"target":"base:v1","tags":["v2","stable"]}`)
	must.Eq(t, 201, a.status, must.Sprint(a.body))
	m := a.object(t)
	must.Eq(t, any([]any{"v2", "stable"}), m["tags"])
	must.Eq(t, 36, len(m["buildID"].(string)))
	must.Eq(t, "a base:v1 v2 stable", f.tenant+" "+f.name+" "+f.source)
	must.Eq(t, 204, h.do("DELETE", "/templates/tags", `{"name":"base","tags":["v2"]}`).status)
	must.Eq(t, "a base v2", f.tenant+" "+f.name+" "+f.source)
	for _, body := range []string{
		`{"tags":["a"]}`, `{"target":"x","tags":[]}`, `{"target":"x","tags":["UPPER"]}`, `{"target":"x","tags":["a b"]}`, `{"target":"x","tags":[""]}`,
		`{"target":"x","tags":["00000000-0000-4000-8000-000000000000"]}`, `{"target":"x","tags":["` + strings.Repeat("a", 129) + `"]}`,
		`{"target":"` + strings.Repeat("a", 300) + `","tags":["a"]}`, `{"target":"x","tags":"a"}`, ``,
	} {
		h.do("POST", "/templates/tags", body).mustFail(t, 400, api.CodeInvalid)
		h.do("DELETE", "/templates/tags", strings.Replace(body, "target", "name", 1)).mustFail(t, 400, api.CodeInvalid)
	}
	f.err = api.Errorf(404, api.CodeUnknownTemplate, "no such template")
	h.do("POST", "/templates/tags", `{"target":"x","tags":["a"]}`).mustFail(t, 404, api.CodeUnknownTemplate)
	h.do("DELETE", "/templates/tags", `{"name":"x","tags":["a"]}`).mustFail(t, 404, api.CodeUnknownTemplate)
}

func TestPublish(t *testing.T) {
	f := &fakeTemplates{}
	h := newHarness(t, func(c *Config) { c.Templates = f })
	a := h.do("PATCH", "/templates/base", `{"public":true}`)
	must.Eq(t, 200, a.status)
	must.Eq(t, map[string]any{}, a.object(t))
	must.Eq(t, "a base true", f.tenant+" "+f.name+" "+f.content)
	a = h.do("PATCH", "/v2/templates/base", `{"public":false}`)
	must.Eq(t, map[string]any{"names": []any{"a/base"}}, a.object(t))
	must.Eq(t, "false", f.content)
	f.content = ""
	must.Eq(t, 200, h.do("PATCH", "/v2/templates/base", `{}`).status)
	must.Eq(t, "", f.content, must.Sprint("nothing was asked for"))
	h.do("PATCH", "/v2/templates/base", `{"public":"yes"}`).mustFail(t, 400, api.CodeInvalid)
}
