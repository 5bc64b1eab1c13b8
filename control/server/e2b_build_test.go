package server

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

// fakeBuilds knows one build, of template "t" with the id "b".
type fakeBuilds struct {
	request api.BuildRequest
	started api.BuildInstructions
	content string
	asked   []any
}

func (f *fakeBuilds) Request(_ context.Context, _ auth.Identity, req api.BuildRequest) (api.RequestedBuild, error) {
	f.request = req
	return api.RequestedBuild{TemplateID: "t", BuildID: "b", Names: []string{"mine"}, Aliases: []string{"mine"}, Tags: []string{"default"}}, nil
}

func (f *fakeBuilds) Builds(_, id string) ([]state.Build, error) {
	if id != "t" {
		return nil, nil
	}
	return []state.Build{{ID: "b", TemplateID: "t", Name: "t", Status: state.BuildBuilding}}, nil
}

func (f *fakeBuilds) Cancel(context.Context, string) (int, int, error) { return 2, 1, nil }

func (f *fakeBuilds) Files(_, hash string) (bool, string, error) {
	return hash == "known", "ticket", nil
}

func (f *fakeBuilds) Upload(ticket string, r io.Reader) error {
	if ticket != "ticket" {
		return api.Errorf(401, api.CodeUnauthorized, "the link is not valid any more")
	}
	b, err := io.ReadAll(r)
	f.content = string(b)
	return err
}

func (f *fakeBuilds) Start(_ context.Context, _ auth.Identity, _, _ string, in api.BuildInstructions) error {
	f.started = in
	return nil
}

func (f *fakeBuilds) Status(_, template, build string, offset, limit int, level string) (api.TemplateBuildInfo, error) {
	if template != "t" || build != "b" {
		return api.TemplateBuildInfo{}, api.Errorf(404, api.CodeNotFound, "no such build")
	}
	f.asked = []any{offset, limit, level}
	return api.TemplateBuildInfo{TemplateID: "t", BuildID: "b", Status: api.BuildError, Logs: []string{}, LogEntries: []api.BuildLogEntry{
		{Timestamp: testTime, Level: "info", Message: "one", Step: "1"}, {Timestamp: testTime.Add(time.Second), Level: "warn", Message: "two"},
	}, Reason: &api.BuildReason{Message: "it failed", Step: "1", LogEntries: []api.BuildLogEntry{}}}, nil
}

func TestBuilds_inTheContractsShape(t *testing.T) {
	f := &fakeBuilds{}
	h := newHarness(t, func(c *Config) { c.Builds, c.Templates = f, &fakeTemplates{} })
	a := h.do("POST", "/v3/templates", `{"name":"mine","tags":[],"cpuCount":2,"memoryMB":1024,"minFreeDiskMb":1}`)
	must.Eq(t, 202, a.status)
	must.Eq(t, map[string]any{
		"templateID": "t", "buildID": "b", "public": false, "names": []any{"mine"}, "aliases": []any{"mine"}, "tags": []any{"default"},
	}, a.object(t))
	must.Eq(t, 2, *f.request.CPUCount)

	a = h.do("GET", "/templates/t/files/unknown", "")
	must.Eq(t, 201, a.status)
	m := a.object(t)
	must.Eq(t, any(false), m["present"])
	must.StrHasSuffix(t, "/v1/uploads?ticket=ticket", m["url"].(string))
	must.Eq(t, any(true), h.do("GET", "/templates/t/files/known", "").object(t)["present"])
	h.do("GET", "/templates/other/files/known", "").mustFail(t, 404, api.CodeNotFound)

	must.Eq(t, 200, h.do("PUT", "/v1/uploads?ticket=ticket", "a tar", "X-API-Key", "").status, must.Sprint("the ticket is enough"))
	must.Eq(t, "a tar", f.content)
	h.do("PUT", "/v1/uploads?ticket=guessed", "a tar", "X-API-Key", "").mustFail(t, 401, api.CodeUnauthorized)

	a = h.do("POST", "/v2/templates/t/builds/b", `{"fromTemplate":"base","startCmd":"s","readyCmd":"r","force":false,"steps":[
		{"type":"COPY","args":["a","b","",""],"filesHash":"h","forceUpload":true,"resolveSymlinks":false,"gzip":true}]}`)
	must.Eq(t, 202, a.status)
	must.Eq(t, "", a.body)
	must.Eq(t, api.BuildInstructions{
		FromTemplate: "base", StartCmd: "s", ReadyCmd: "r", Steps: []api.BuildStep{{Type: "COPY", Args: []string{"a", "b", "", ""}, FilesHash: "h"}},
	}, f.started)

	a = h.do("GET", "/templates/t/builds/b/status?logsOffset=3&limit=7&level=warn", "")
	must.Eq(t, 200, a.status)
	must.Eq(t, []any{3, 7, "warn"}, f.asked)
	must.Eq(t, any(map[string]any{"message": "it failed", "step": "1", "logEntries": []any{}}), a.object(t)["reason"])
	for _, q := range []string{"logsOffset=-1", "limit=101", "level=loud", "logsOffset=x"} {
		h.do("GET", "/templates/t/builds/b/status?"+q, "").mustFail(t, 400, api.CodeInvalid)
	}
	for q, want := range map[string]string{
		"": "one", "direction=backward": "two", "cursor=1795464000000&limit=1": "two", "direction=backward&cursor=1795464001000": "one",
	} {
		logs, _ := h.do("GET", "/templates/t/builds/b/logs?"+q, "").object(t)["logs"].([]any)
		must.SliceNotEmpty(t, logs, must.Sprint(q))
		must.Eq(t, any(want), logs[0].(map[string]any)["message"], must.Sprint(q))
	}
	h.do("GET", "/templates/t/builds/b/logs?direction=up", "").mustFail(t, 400, api.CodeInvalid)
	h.do("GET", "/templates/base/builds/other/status", "").mustFail(t, http.StatusNotFound, api.CodeNotFound)
	newHarness(t).do("POST", "/v3/templates", `{"name":"mine"}`).mustFail(t, 501, codeUnsupported)
}
