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
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

func ptr[T any](v T) *T { return &v }

func TestCreate_passesEverythingOnAndTellsItsSteps(t *testing.T) {
	h := newHarness(t)
	got, err := h.client().CreateSandbox(t.Context(), api.CreateRequest{
		Template: "base", Timeout: ptr[int64](60), Env: map[string]string{"A": "b"}, Metadata: map[string]string{"m": "n"}, AllowInternetAccess: ptr(false),
		CreateOptions: api.CreateOptions{
			ID: otherID, CPU: ptr(1.5), MemoryMB: ptr[int64](256), DiskMB: ptr[int64](512), PIDs: ptr[int64](99),
			User: "user", Cwd: "/home/user", Hostname: "box", Profile: "strict", Command: []string{"sleep", "9"}, TTY: true,
		},
	})
	must.NoError(t, err)
	must.Eq(t, []lifecycle.CreateParams{{
		ID: otherID, Caller: identity("00000000000000aa", "a"), Template: "base",
		Timeout: time.Minute, CPUMillis: 1500, MemoryMB: 256, DiskMB: 512, Limits: state.Limits{PIDs: 99, DiskBytes: 512 << 20}, User: "user", Cwd: "/home/user", Hostname: "box",
		Profile: "strict", EnvVars: map[string]string{"A": "b"}, Metadata: map[string]string{"m": "n"},
		Main: &guest.Start{Argv: []string{"sleep", "9"}, TTY: true}, Lifecycle: state.Lifecycle{OnTimeout: state.OnTimeoutKill},
		AllowInternetAccess: ptr(false),
	}}, h.life.created)
	must.Eq(t, []api.Step{{Name: "place", Nanos: 1000}, {Name: "start", Nanos: 2000}}, got.Steps)
	must.Eq(t, testID, got.ID)
	must.Eq(t, api.NodeID("node-1"), got.Node)
	must.Eq(t, map[string]string{"m": "n"}, got.Metadata)
}

func TestCreate_leavesDefaultsToTheService(t *testing.T) {
	h := newHarness(t)
	a := h.do("POST", "/v2/sandboxes", `{"templateID":"base","soulbox":{"cpu_millis":250}}`)
	must.Eq(t, 201, a.status)
	p := h.life.created[0]
	must.Eq(t, time.Duration(0), p.Timeout)
	must.Eq(t, 250, p.CPUMillis)
	must.Nil(t, p.Main)
}

func TestCreate_refusesBadFields(t *testing.T) {
	h := newHarness(t)
	for name, tc := range map[string]struct{ body, field string }{
		"no template":         {`{}`, "templateID"},
		"id":                  {`{"templateID":"b","soulbox":{"id":"x"}}`, "id"},
		"id with client":      {`{"templateID":"b","soulbox":{"id":"` + string(testID) + `-c"}}`, "id"},
		"timeout 0":           {`{"templateID":"b","timeout":0}`, "timeout"},
		"timeout negative":    {`{"templateID":"b","timeout":-9}`, "timeout"},
		"cpu negative":        {`{"templateID":"b","soulbox":{"cpu":-1}}`, "cpu"},
		"cpu zero":            {`{"templateID":"b","soulbox":{"cpu":0}}`, "cpu"},
		"cpu tiny":            {`{"templateID":"b","soulbox":{"cpu":0.0001}}`, "cpu"},
		"cpu huge":            {`{"templateID":"b","soulbox":{"cpu":1e300}}`, "cpu"},
		"cpu infinite":        {`{"templateID":"b","soulbox":{"cpu":1e999}}`, "cpu"},
		"cpu NaN":             {`{"templateID":"b","soulbox":{"cpu":NaN}}`, "JSON"},
		"cpu a string":        {`{"templateID":"b","soulbox":{"cpu":"1"}}`, "cpu"},
		"both cpus":           {`{"templateID":"b","soulbox":{"cpu":1,"cpu_millis":1}}`, "cpu"},
		"cpu_millis 2^63":     {`{"templateID":"b","soulbox":{"cpu_millis":9223372036854775808}}`, "cpu_millis"},
		"cpu_millis 2^63-1":   {`{"templateID":"b","soulbox":{"cpu_millis":9223372036854775807}}`, "cpu_millis"},
		"memory 0":            {`{"templateID":"b","soulbox":{"memory_mb":0}}`, "memory_mb"},
		"memory negative":     {`{"templateID":"b","soulbox":{"memory_mb":-1}}`, "memory_mb"},
		"memory 2^63-1":       {`{"templateID":"b","soulbox":{"memory_mb":9223372036854775807}}`, "memory_mb"},
		"memory a fraction":   {`{"templateID":"b","soulbox":{"memory_mb":1.5}}`, "memory_mb"},
		"disk negative":       {`{"templateID":"b","soulbox":{"disk_mb":-1}}`, "disk_mb"},
		"pids huge":           {`{"templateID":"b","soulbox":{"pids":99999999}}`, "pids"},
		"hostname newline":    {`{"templateID":"b","soulbox":{"hostname":"a\nb"}}`, "hostname"},
		"hostname long":       {`{"templateID":"b","soulbox":{"hostname":"` + strings.Repeat("h", 65) + `"}}`, "hostname"},
		"user control":        {`{"templateID":"b","soulbox":{"user":"\u0000"}}`, "user"},
		"cwd long":            {`{"templateID":"b","soulbox":{"cwd":"/` + strings.Repeat("h", 4096) + `"}}`, "cwd"},
		"command empty":       {`{"templateID":"b","soulbox":{"command":[]}}`, "command"},
		"command of nothing":  {`{"templateID":"b","soulbox":{"command":[""]}}`, "command"},
		"tty without command": {`{"templateID":"b","soulbox":{"tty":true}}`, "tty"},
		"env a list":          {`{"templateID":"b","envVars":["A=b"]}`, "env"},
	} {
		t.Run(name, func(t *testing.T) {
			must.StrContains(t, h.do("POST", "/v2/sandboxes", tc.body).mustFail(t, 400, api.CodeInvalid), tc.field)
		})
	}
	must.SliceEmpty(t, h.life.created)
}

func TestGet_showsAllFieldsButTheEnvironment(t *testing.T) {
	h := newHarness(t)
	sb := sandbox(testID)
	sb.State, sb.Reason, sb.EndedAt = state.Stopped, "its command ended", testTime.Add(2*time.Second)
	sb.Exit = &state.Exit{Reason: "main_exited", Code: 137, Signal: 9, OOM: true, PIDs: true, Disk: true, Message: "m"}
	sb.QoS, sb.Limits = api.QoSBestEffort, state.Limits{PIDs: 64, DiskBytes: 1 << 30, DiskInodes: 5, IOReadBytes: 1, IOWriteBytes: 2, IOReadOps: 3, IOWriteOps: 4}
	h.life.sandboxes[testID] = sb
	h.do("GET", "/sandboxes/"+string(testID), "").mustFail(t, 404, api.CodeNotFound) // the contract has no word for it
	a := h.do("GET", "/sandboxes/"+string(testID)+"?soulbox=true", "")
	must.Eq(t, 200, a.status)
	must.Eq(t, any(map[string]any{
		"qos": "best_effort", "pids": 64.0, "disk_inodes": 5.0, "io_read_bytes": 1.0, "io_write_bytes": 2.0, "io_read_ops": 3.0, "io_write_ops": 4.0,
		"id": string(testID), "template": "base", "template_digest": "sha256:00", "node_id": "node-1", "state": "stopped",
		"reason": "its command ended", "created_at": "2026-11-23T20:00:00Z", "started_at": "2026-11-23T20:00:01Z",
		"end_at": "2026-11-23T20:01:00Z", "max_end_at": "2026-11-23T21:00:00Z", "ended_at": "2026-11-23T20:00:02Z",
		"cpu_millis": 1500.0, "memory_mb": 512.0, "disk_mb": 1024.0, "metadata": map[string]any{"k": "v"},
		"key_id": "00000000000000aa", "on_timeout": "kill", "auto_resume": false, "allow_internet_access": true,
		"exit": map[string]any{"reason": "main_exited", "code": 137.0, "signal": 9.0, "oom": true, "pids_limit": true, "disk_full": true, "message": "m"},
	}), a.object(t)["soulbox"])
	must.StrNotContains(t, a.body, "hunter2")
	_, err := h.client().GetSandbox(t.Context(), otherID)
	must.True(t, api.IsNotFound(err))
}

func TestList_pagesAndFilters(t *testing.T) {
	h := newHarness(t)
	c := h.client()
	h.life.nextList = state.List{Sandboxes: []state.Sandbox{sandbox(testID)}, NextToken: "t2", TotalRunning: 9}
	var ids []api.SandboxID
	for sb, err := range c.AllSandboxes(t.Context(), api.ListOptions{
		States: []string{"running", "lost"}, Template: "base", StartedAfter: testTime, Ascending: true, Limit: 1000,
	}) {
		must.NoError(t, err)
		ids = append(ids, sb.ID)
	}
	must.Eq(t, []api.SandboxID{testID}, ids)
	f := state.Filter{Tenant: "a", States: []state.SandboxState{state.Running, state.Lost}, Template: "base", StartedAfter: testTime}
	must.Eq(t, []listCall{
		{f, state.Ascending, state.Page{Limit: 1000}}, {f, state.Ascending, state.Page{Limit: 1000, Token: "t2"}},
	}, h.life.lists)

	for q, field := range map[string]string{
		"limit=1001": "limit", "state=gone": "state", "order=x": "order", "startedAfter=1": "startedAfter", "metadata=%25zz%3Da": "metadata",
	} {
		must.StrContains(t, h.do("GET", "/v2/sandboxes?soulbox=true&"+q, "").mustFail(t, 400, api.CodeInvalid), field)
	}
	h.life.err = fmt.Errorf("page: %w", state.ErrToken)
	h.do("GET", "/v2/sandboxes?soulbox=1&nextToken=x", "").mustFail(t, 400, api.CodeInvalid)
}

func TestDelete(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	c := h.client()
	must.NoError(t, c.DeleteSandbox(t.Context(), testID))
	must.True(t, api.IsNotFound(c.DeleteSandbox(t.Context(), testID)))
}

func TestGoClient_timeouts(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	c := h.client()
	must.NoError(t, c.SetTimeout(t.Context(), testID, 1500*time.Millisecond))
	must.NoError(t, c.Refresh(t.Context(), testID, time.Minute))
	a, err := c.Connect(t.Context(), testID, time.Hour)
	must.NoError(t, err)
	must.Eq(t, testID, a.SandboxID)
	must.Eq(t, []timeoutCall{{"set", testID, 2 * time.Second}, {"refresh", testID, time.Minute}, {"connect", testID, time.Hour}}, h.life.timeouts)
}

func TestSandboxHealth(t *testing.T) {
	h := newHarness(t)
	h.life.sandboxes[testID] = sandbox(testID)
	path := "/v1/sandboxes/" + string(testID) + "/health"
	h.life.health = lifecycle.Health{
		Status: lifecycle.HealthOK, SandboxID: testID, Node: "node-1", State: state.Running, Uptime: 90*time.Second + time.Millisecond, Version: "0.1.0-dev",
	}
	a := h.do("GET", path, "")
	must.Eq(t, 200, a.status)
	must.Eq(t, map[string]any{
		"status": "ok", "sandbox_id": string(testID), "uptime_seconds": 90.0, "version": "0.1.0-dev", "state": "running", "node_id": "node-1",
	}, a.object(t))

	h.life.health = lifecycle.Health{Status: lifecycle.HealthFailed, SandboxID: testID, State: state.Stopped, Reason: "the sandbox is stopped"}
	a = h.do("GET", path, "")
	a.mustFail(t, 503, codeUnhealthy)
	m := a.object(t)
	for k, want := range map[string]any{"status": "unhealthy", "sandbox_id": string(testID), "uptime_seconds": 0.0, "version": "0.1.0-dev", "reason": "the sandbox is stopped"} {
		must.Eq(t, want, m[k], must.Sprint(k))
	}
	got, err := h.client().SandboxHealth(t.Context(), testID)
	must.NoError(t, err, must.Sprint("not healthy is an answer"))
	must.False(t, got.OK())
	must.Eq(t, "the sandbox is stopped", got.Reason)

	h.do("GET", "/v1/sandboxes/"+string(otherID)+"/health", "").mustFail(t, 404, api.CodeNotFound)
	_, err = h.client().SandboxHealth(t.Context(), otherID)
	must.True(t, api.IsNotFound(err))
}

func TestServiceHealthAndVersion(t *testing.T) {
	var down error
	h := newHarness(t, func(c *Config) { c.Ready = func() error { return down } })
	a := h.do("GET", "/v1/health", "", "X-API-Key", "")
	must.Eq(t, 200, a.status)
	must.Eq(t, map[string]any{"status": "ok", "uptime_seconds": 0.0, "version": "0.1.0-dev"}, a.object(t))
	a = h.do("GET", "/v1/version", "", "X-API-Key", "")
	m := a.object(t)
	delete(m, "commit") // not in every build
	must.Eq(t, map[string]any{"version": "0.1.0-dev", "api_version": 1.0, "min_api_version": 1.0, "min_client": "0.1.0-dev"}, m)
	down = errors.New("no leader")
	a = h.do("GET", "/v1/health", "")
	a.mustFail(t, 503, codeNotReady)
	must.Eq(t, any("unhealthy"), a.object(t)["status"])
	_, err := h.client().Health(t.Context())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	v, err := h.client().Version(t.Context())
	must.NoError(t, err)
	must.Eq(t, 1, v.APIVersion)
}
