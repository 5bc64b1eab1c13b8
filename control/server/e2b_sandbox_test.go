package server

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestE2BHealth(t *testing.T) {
	h := newHarness(t)
	a := h.do("GET", "/health", "", "X-API-Key", "")
	must.Eq(t, http.StatusNoContent, a.status)
	must.Eq(t, "", a.body)

	h = newHarness(t, func(c *Config) { c.Ready = func() error { return errors.New("no leader") } })
	msg := h.do("GET", "/health", "", "X-API-Key", "").mustFail(t, 503, codeNotReady)
	must.StrContains(t, msg, "no leader")
}

func TestE2BGet_hasExactlyTheContractsFields(t *testing.T) {
	h := newHarness(t)
	sb := sandbox(testID)
	sb.Network = []byte(`{"allowPublicTraffic":false}`)
	h.life.sandboxes[testID] = sb
	for _, path := range []string{"/sandboxes/" + string(testID), "/sandboxes/" + string(testID) + "-oldclient"} {
		a := h.do("GET", path, "")
		must.Eq(t, http.StatusOK, a.status)
		must.Eq(t, map[string]any{
			"templateID": "base", "alias": "base", "sandboxID": string(testID), "clientID": clientID,
			"startedAt": "2026-11-23T20:00:01Z", "endAt": "2026-11-23T20:01:00Z", "cpuCount": 2.0, "memoryMB": 512.0, "diskSizeMB": 1024.0,
			"metadata": map[string]any{"k": "v"}, "state": "running", "envdVersion": "0.6.13",
			"allowInternetAccess": true, "domain": nil, "network": map[string]any{"allowPublicTraffic": false},
			"lifecycle": map[string]any{"autoResume": false, "onTimeout": "kill"},
		}, a.object(t))
		must.StrNotContains(t, a.body, "hunter2")
	}
}

func TestE2BGet_showsOnlyWhatTheContractHasAWordFor(t *testing.T) {
	for st, want := range map[state.SandboxState]int{
		state.Running: 200, state.Paused: 200, state.Starting: 404, state.Stopping: 404, state.Stopped: 404, state.Failed: 404, state.Lost: 404,
	} {
		t.Run(string(st), func(t *testing.T) {
			h := newHarness(t)
			sb := sandbox(testID)
			sb.State = st
			h.life.sandboxes[testID] = sb
			a := h.do("GET", "/sandboxes/"+string(testID), "")
			must.Eq(t, want, a.status)
			if want == 404 {
				a.mustFail(t, 404, api.CodeNotFound)
			}
		})
	}
}

func TestE2BDelete(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	a := h.do("DELETE", "/sandboxes/"+string(testID), "")
	must.Eq(t, http.StatusNoContent, a.status)
	must.Eq(t, "", a.body)
	h.do("DELETE", "/sandboxes/"+string(testID), "").mustFail(t, 404, api.CodeNotFound)
}

func TestE2BTimeouts(t *testing.T) {
	for name, tc := range map[string]struct {
		path, body string
		status     int
		want       timeoutCall // where Op is set
		field      string      // in the message of an error
	}{
		"timeout":              {"/timeout", `{"timeout":60}`, 204, timeoutCall{"set", testID, time.Minute}, ""},
		"timeout zero":         {"/timeout", `{"timeout":0}`, 204, timeoutCall{"set", testID, 0}, ""},
		"timeout missing":      {"/timeout", `{}`, 400, timeoutCall{}, "timeout"},
		"timeout null":         {"/timeout", `{"timeout":null}`, 400, timeoutCall{}, "timeout"},
		"timeout no body":      {"/timeout", ``, 400, timeoutCall{}, "body"},
		"timeout negative":     {"/timeout", `{"timeout":-1}`, 400, timeoutCall{}, "timeout"},
		"timeout huge":         {"/timeout", `{"timeout":99999999999}`, 400, timeoutCall{}, "timeout"},
		"refresh":              {"/refreshes", `{"duration":90}`, 204, timeoutCall{"refresh", testID, 90 * time.Second}, ""},
		"refresh no body":      {"/refreshes", ``, 204, timeoutCall{"refresh", testID, 15 * time.Second}, ""},
		"refresh empty":        {"/refreshes", `{}`, 204, timeoutCall{"refresh", testID, 15 * time.Second}, ""},
		"refresh most":         {"/refreshes", `{"duration":3600}`, 204, timeoutCall{"refresh", testID, time.Hour}, ""},
		"refresh too long":     {"/refreshes", `{"duration":3601}`, 400, timeoutCall{}, "duration"},
		"refresh negative":     {"/refreshes", `{"duration":-1}`, 400, timeoutCall{}, "duration"},
		"connect v1":           {"/connect", `{"timeout":5}`, 200, timeoutCall{"connect", testID, 5 * time.Second}, ""},
		"connect v1 missing":   {"/connect", `{}`, 400, timeoutCall{}, "timeout"},
		"connect v1 no body":   {"/connect", ``, 400, timeoutCall{}, "body"},
		"connect v2":           {"v2/connect", `{"timeout":5,"memory":true}`, 200, timeoutCall{"connect", testID, 5 * time.Second}, ""},
		"connect v2 empty":     {"v2/connect", `{}`, 200, timeoutCall{"connect", testID, 300 * time.Second}, ""},
		"connect v2 no body":   {"v2/connect", ``, 200, timeoutCall{"connect", testID, 300 * time.Second}, ""},
		"connect v2 bad value": {"v2/connect", `{"timeout":-3}`, 400, timeoutCall{}, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.life.sandboxes[testID] = sandbox(testID)
			path := "/sandboxes/" + string(testID) + tc.path
			if rest, v2 := strings.CutPrefix(tc.path, "v2"); v2 {
				path = "/v2/sandboxes/" + string(testID) + rest
			}
			a := h.do("POST", path, tc.body)
			must.Eq(t, tc.status, a.status, must.Sprint(a.body))
			if tc.want.Op == "" {
				must.StrContains(t, a.mustFail(t, 400, api.CodeInvalid), tc.field)
				must.SliceEmpty(t, h.life.timeouts)
				return
			}
			must.Eq(t, []timeoutCall{tc.want}, h.life.timeouts)
		})
	}
}

func TestE2BTimeouts_ofWhatDoesNotRunAreNotFound(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	h.life.err = api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is paused", testID)
	msg := h.do("POST", "/sandboxes/"+string(testID)+"/timeout", `{"timeout":60}`).mustFail(t, 404, api.CodeNotFound)
	must.StrContains(t, msg, "is paused")
	h.life.err = api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is paused", testID)
	h.do("POST", "/sandboxes/"+string(testID)+"/refreshes", `{"duration":60}`).mustFail(t, 404, api.CodeNotFound)
}

func TestE2BConnect_says201WhereItResumed(t *testing.T) {
	h := newHarness(t)
	sb := sandbox(testID)
	sb.State = state.Paused
	h.life.sandboxes[testID] = sb
	for _, path := range []string{"/sandboxes/", "/v2/sandboxes/"} {
		a := h.do("POST", path+string(testID)+"/connect", `{"timeout":5}`)
		must.Eq(t, http.StatusCreated, a.status)
		must.Eq(t, []string{"alias", "clientID", "domain", "envdVersion", "sandboxID", "templateID", "trafficAccessToken"}, keysOf(a.object(t)))
	}
	h.life.err = api.Errorf(409, api.CodeConflict, "it is being killed")
	h.do("POST", "/v2/sandboxes/"+string(testID)+"/connect", `{}`).mustFail(t, 409, api.CodeConflict)
}

func TestSandboxIDs_oddOnesAreAnError(t *testing.T) {
	h := newHarness(t)
	for id, want := range map[string]int{
		"ithasnotexistedeverxx":    404,
		"abc":                      404,
		"abc-def":                  404,
		strings.Repeat("a", 64):    404,
		strings.Repeat("a", 200):   400,
		"UPPER":                    400,
		"a%2Fb":                    400,
		"%00":                      400,
		"a%0d%0ab":                 400,
		"i%C3%BCaaaaaaaaaaaaaaaa":  400,
		"..%2f..%2fetc":            400,
		"-":                        400,
		"$%7Bjndi%7D":              400,
		string(testID) + "-x%00y":  404, // the client id is stripped, whatever it is
		string(testID) + "-client": 404,
	} {
		for _, path := range []string{"/sandboxes/%s", "/v1/sandboxes/%s/stats"} {
			a := h.do("GET", fmt.Sprintf(path, id), "")
			must.Eq(t, want, a.status, must.Sprint(path, id, a.body))
		}
	}
}

// Every endpoint of a sandbox answers another tenant as if the sandbox did not exist.
func TestTenants_anotherOnesSandboxIsNotFound(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	id := string(testID)
	n := 0
	for _, rt := range h.srv.routes() {
		if !strings.Contains(rt.pattern, "{id}") {
			continue
		}
		n++
		method, path, _ := strings.Cut(strings.ReplaceAll(rt.pattern, "{id}", id), " ")
		body := ""
		switch {
		case strings.HasSuffix(path, "/limits"):
			body = `{"memory_mb":64}`
		case strings.HasSuffix(path, "/shape"), strings.HasSuffix(path, "/join"), strings.HasSuffix(path, "/published"):
			body = `{}`
		case method == "GET" || method == "DELETE" || method == "PUT":
		default:
			body = `{"timeout":5,"signal":9,"pid":1,"size":{"cols":1,"rows":1}}`
		}
		header := []string{"X-API-Key", keyB}
		a := h.do(method, path+"?path=/x&target=/y", body, header...)
		must.Eq(t, http.StatusNotFound, a.status, must.Sprintf("%s: %s", rt.pattern, a.body))
		a.mustFail(t, 404, api.CodeNotFound)
	}
	must.Greater(t, 25, n)
	_, there := h.life.sandboxes[testID]
	must.True(t, there)
}
