package nomad

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestClassOf_roundsUpToFewSizes(t *testing.T) {
	tests := []struct {
		name   string
		limits nodeapi.Limits
		want   string
	}{
		{"the node's defaults", nodeapi.Limits{}, "p-1000c-512m"},
		{"an exact size", nodeapi.Limits{CPUMillis: 2000, MemoryBytes: 1 << 30}, "p-2000c-1024m"},
		{"odd sizes", nodeapi.Limits{CPUMillis: 1001, MemoryBytes: 512*mib + 1}, "p-1250c-576m"},
		{"one thousandth of a core, one byte", nodeapi.Limits{CPUMillis: 1, MemoryBytes: 1}, "p-50c-16m"},
		{"a big one", nodeapi.Limits{CPUMillis: 4001, MemoryBytes: 65 << 30}, "p-5000c-73728m"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) { must.Eq(t, tc.want, classOf(tc.limits, "").jobID("p")) })
	}
}

func TestClassOf_neverReservesLess(t *testing.T) {
	seen := map[class]bool{}
	for n := int64(1); n < 70_000; n += 7 {
		c := classOf(nodeapi.Limits{CPUMillis: n, MemoryBytes: n * mib}, "")
		must.GreaterEq(t, n, c.cpuMillis)
		must.GreaterEq(t, n, c.memoryMB)
		must.LessEq(t, max(n+n/8+1, minMemoryMB), c.memoryMB)
		seen[c] = true
	}
	must.Less(t, 300, len(seen))
}

func TestPlace_namesWhatMakesADescriptionTooLong(t *testing.T) {
	p, err := New(Config{Address: "http://127.0.0.1:1"})
	must.NoError(t, err)
	defer p.Close()
	err = p.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Env: map[string]string{"BIG": strings.Repeat("x", MaxPayload)}, Metadata: map[string]string{"a": "b"},
	}})
	var e *api.Error
	must.True(t, errors.As(err, &e))
	must.Eq(t, api.CodeTooLarge, e.ErrorCode)
	must.Eq(t, http.StatusRequestEntityTooLarge, e.Code)
	must.StrContains(t, e.Message, "envVars 16394, metadata 9")
	must.StrContains(t, e.Message, "at most 16384 bytes")
}

func TestPlace_refusesAnIDThatIsNone(t *testing.T) {
	p, err := New(Config{})
	must.NoError(t, err)
	defer p.Close()
	for _, id := range []api.SandboxID{"", "x", "../../jobs", api.NewSandboxID() + "-client"} {
		must.Eq(t, http.StatusBadRequest, api.StatusOf(p.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{ID: id}})))
	}
}

func TestPlacer_isUnavailableWithoutNomad(t *testing.T) {
	p, err := New(Config{Address: "http://127.0.0.1:1"})
	must.NoError(t, err)
	defer p.Close()
	id := api.NewSandboxID()
	_, listErr := p.List(t.Context())
	for name, err := range map[string]error{
		"place": p.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{ID: id}}),
		"watch": p.Watch(t.Context(), id),
		"stop":  p.Stop(t.Context(), id),
		"list":  listErr,
	} {
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(name))
		must.Eq(t, api.CodeUnavailable, api.AsError(err).ErrorCode, must.Sprint(name))
		must.StrContains(t, err.Error(), "connection refused", must.Sprint(name))
	}
}

func TestPlacer_passesNomadsRefusalOn(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Permission denied", http.StatusForbidden)
	}))
	defer srv.Close()
	p, err := New(Config{Address: srv.URL})
	must.NoError(t, err)
	defer p.Close()
	err = p.Place(t.Context(), placement.Request{Node: nodeapi.CreateRequest{ID: api.NewSandboxID()}})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.StrContains(t, err.Error(), "Permission denied (status 403)")
}

func TestParent_holdsNothingOfARequest(t *testing.T) {
	p, err := New(Config{})
	must.NoError(t, err)
	defer p.Close()
	job := p.parent(class{cpuMillis: 500, memoryMB: 256})
	group := job.TaskGroups[0]
	must.Eq(t, "soulbox-sandbox-500c-256m", *job.ID)
	must.Eq(t, nomadapi.JobTypeBatch, *job.Type)
	must.Eq(t, 0, *group.RestartPolicy.Attempts)
	must.Eq(t, 0, *group.ReschedulePolicy.Attempts)
	must.False(t, *group.ReschedulePolicy.Unlimited)
	must.False(t, *group.Disconnect.Replace)
	must.True(t, *group.Tasks[0].LogConfig.Disabled)
	must.Eq(t, 500, *group.Tasks[0].Resources.CPU)
	must.Eq(t, 256, *group.Tasks[0].Resources.MemoryMB)
	text, err := json.Marshal(job)
	must.NoError(t, err)
	must.StrNotContains(t, string(text), "${")
}

func TestDriverError_findsTheCodeThatTheDriverNamed(t *testing.T) {
	tests := []struct {
		name, message string
		status        int
		code, text    string
	}{
		{"a node's refusal", `template "x" does not exist (template_not_found)`, 404, api.CodeUnknownTemplate, `template "x" does not exist`},
		{"through grpc", `rpc error: code = Unknown desc = cwd: no directory /a (cwd_not_found)`, 400, api.CodeCwd, `cwd: no directory /a`},
		{"of a snapshot", `snapshot s1: the version of the snapshot key is revoked: 1 (bad_snapshot)`, 422, "bad_snapshot", `snapshot s1: the version of the snapshot key is revoked: 1`},
		{"a word that is no code", `it broke (badly)`, 500, api.CodeInternal, `sandbox iaaaa did not start: it broke (badly)`},
		{"nothing", ``, 500, api.CodeInternal, `sandbox iaaaa did not start: nomad gave no reason`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			e := api.AsError(driverError("iaaaa", tc.message))
			must.Eq(t, &api.Error{Code: tc.status, ErrorCode: tc.code, Message: tc.text}, e)
		})
	}
}

func TestTaskFailure_ofAClientThatTookNothingIsOneToTryAgain(t *testing.T) {
	e := api.AsError(taskFailure("iaaaa", nil, `Unable to add allocation due to error: failed creating runner for task "sandbox": plugin is shut down`))
	must.Eq(t, 503, e.Code)
	must.StrContains(t, e.Message, "plugin is shut down")
	must.Eq(t, 500, api.StatusOf(taskFailure("iaaaa", nil, "Failed tasks")))
}

func TestPlacementFailure_speaksOfNodes(t *testing.T) {
	tests := []struct {
		name   string
		metric *nomadapi.AllocationMetric
		want   string
	}{
		{"nothing known", nil, "nomad gave no reason"},
		{"no nodes", &nomadapi.AllocationMetric{}, "there is none in its datacenters and node pool"},
		{"full", &nomadapi.AllocationMetric{
			NodesAvailable: map[string]int{"dc1": 2, "dc2": 1}, DimensionExhausted: map[string]int{"memory": 2, "cpu": 1},
		}, "of 3 nodes, cpu is exhausted on 1, memory is exhausted on 2"},
		{"no driver", &nomadapi.AllocationMetric{
			NodesAvailable: map[string]int{"dc1": 1}, ConstraintFiltered: map[string]int{"missing drivers": 1},
		}, `of 1 nodes, "missing drivers" filters 1`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) { must.Eq(t, tc.want, placementFailure(tc.metric)) })
	}
}

func TestNew_namesWrongSettings(t *testing.T) {
	for field, cfg := range map[string]Config{
		"prefix": {Prefix: "a/b"}, "priority": {Priority: 101}, "MHz": {MHzPerCore: -1}, "kill timeout": {KillTimeout: -time.Second},
	} {
		_, err := New(cfg)
		must.ErrorContains(t, err, field)
	}
}
