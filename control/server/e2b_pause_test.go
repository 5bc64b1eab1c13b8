package server

import (
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestE2BPause_answersAsTheContract(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	must.Eq(t, http.StatusNoContent, h.do("POST", "/sandboxes/"+string(testID)+"/pause", "").status)
	h.do("POST", "/sandboxes/"+string(testID)+"/pause", `{}`).mustFail(t, http.StatusConflict, "sandbox_not_running")
	must.False(t, h.life.sandboxes[testID].PausedFiles)
	h.life.sandboxes[testID] = sandbox(testID)
	must.Eq(t, http.StatusNoContent, h.do("POST", "/sandboxes/"+string(testID)+"/pause", `{"memory":false}`).status)
	must.True(t, h.life.sandboxes[testID].PausedFiles)
	h.do("POST", "/sandboxes/"+string(otherID)+"/pause", `{}`).mustFail(t, http.StatusNotFound, "not_found")

	a := h.do("POST", "/sandboxes/"+string(testID)+"/resume", `{}`)
	must.Eq(t, http.StatusCreated, a.status)
	must.Eq(t, timeoutCall{"resume", testID, 15 * time.Second}, h.life.timeouts[0])
	h.do("POST", "/sandboxes/"+string(testID)+"/resume", `{"timeout":-1}`).mustFail(t, http.StatusBadRequest, "invalid_argument")
}

func TestE2BFork_tellsEachCopysFate(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	a := h.do("POST", "/sandboxes/"+string(testID)+"/fork", `{"count":2,"timeout":30}`)
	must.Eq(t, http.StatusCreated, a.status)
	must.StrContains(t, a.body, `[{"sandbox":{"templateID":`)
	must.StrContains(t, a.body, `{"error":{"code":503,"message":"no room"`)
	must.Eq(t, 30*time.Second, h.life.timeouts[0].D)
	for _, body := range []string{`{"count":0}`, `{"count":101}`, `{"count":1.5}`, `{"timeout":0}`} {
		h.do("POST", "/sandboxes/"+string(testID)+"/fork", body).mustFail(t, http.StatusBadRequest, "invalid_argument")
	}
}

func TestE2BSnapshots_pageByPage(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	for _, body := range []string{`{"name":"a:v1"}`, `{}`, `{"name":"b:default"}`} {
		must.Eq(t, http.StatusCreated, h.do("POST", "/sandboxes/"+string(testID)+"/snapshots", body).status)
	}
	a := h.do("GET", "/snapshots?limit=2", "")
	must.Eq(t, `[{"snapshotID":"a/b:default","names":["a/b:default"]},{"snapshotID":"s00000000000000000002:default","names":[]}]`+"\n", a.body)
	next := a.header.Get("X-Next-Token")
	must.NotEq(t, "", next)
	a = h.do("GET", "/snapshots?limit=2&nextToken="+next, "")
	must.Eq(t, `[{"snapshotID":"a/a:v1","names":["a/a:v1"]}]`+"\n", a.body)
	must.Eq(t, "", a.header.Get("X-Next-Token"))
	for _, name := range []string{"a", "a:v1", "a/a", "a/a:v1", "s00000000000000000001", "s00000000000000000001:default"} {
		must.Eq(t, `[{"snapshotID":"a/a:v1","names":["a/a:v1"]}]`+"\n", h.do("GET", "/snapshots?name="+name, "").body, must.Sprint(name))
	}
	for _, name := range []string{"a:v2", "b/a", "s00000000000000000001:v1", "a/"} {
		must.Eq(t, "[]\n", h.do("GET", "/snapshots?name="+name, "").body, must.Sprint(name))
	}
	must.Eq(t, "[]\n", h.do("GET", "/snapshots?sandboxID="+string(otherID), "").body)
	h.do("GET", "/snapshots?limit=101", "").mustFail(t, http.StatusBadRequest, "invalid_argument")
	h.do("GET", "/snapshots?nextToken=none", "").mustFail(t, http.StatusBadRequest, "invalid_argument")
	must.Eq(t, http.StatusNoContent, h.do("DELETE", "/templates/s00000000000000000001:default", "").status)
	must.Eq(t, http.StatusNotFound, h.do("GET", "/v1/snapshots/s00000000000000000001", "").status)
	must.Eq(t, http.StatusOK, h.do("GET", "/v1/snapshots/s00000000000000000002", "").status)
}
