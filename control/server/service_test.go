package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-metrics"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

type fakeTemplates struct {
	tenant, name, source, content string
	err                           error
}

var _ Templates = (*fakeTemplates)(nil)

func (f *fakeTemplates) Import(_ context.Context, who auth.Identity, name, source string, r io.Reader) (state.Template, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return state.Template{}, err
	}
	f.tenant, f.name, f.source, f.content = who.Tenant, name, source, string(b)
	return testTemplate(name), f.err
}

func (f *fakeTemplates) List(_ context.Context, tenant string) ([]state.Template, error) {
	f.tenant = tenant
	return []state.Template{testTemplate("base")}, f.err
}

func (f *fakeTemplates) Get(_ context.Context, tenant, name string) (state.Template, error) {
	f.tenant, f.name = tenant, name
	return testTemplate(name), f.err
}

func (f *fakeTemplates) Delete(_ context.Context, tenant, name string) error {
	f.tenant, f.name = tenant, name
	return f.err
}

func (f *fakeTemplates) Tag(_ context.Context, tenant, target string, tags []string) (state.Template, error) {
	f.tenant, f.name, f.source = tenant, target, strings.Join(tags, " ")
	return testTemplate(target), f.err
}

func (f *fakeTemplates) Untag(_ context.Context, tenant, name string, tags []string) error {
	f.tenant, f.name, f.source = tenant, name, strings.Join(tags, " ")
	return f.err
}

func (f *fakeTemplates) SetPlacement(_ context.Context, _, name string, where placement.Rules) (state.Template, error) {
	return state.Template{Name: name, Where: string(where)}, nil
}

func (f *fakeTemplates) SetNetwork(_ context.Context, tenant, name string, p state.NetworkPolicy) (state.Template, error) {
	return state.Template{Tenant: tenant, Name: name, Network: p}, nil
}

func (f *fakeTemplates) Publish(_ context.Context, tenant, name string, public bool) (state.Template, error) {
	f.tenant, f.name, f.content = tenant, name, fmt.Sprint(public)
	return testTemplate(name), f.err
}

func testTemplate(name string) state.Template {
	return state.Template{
		Tenant: "a", Name: name, Digest: "sha256:00", Bytes: 5, Files: 2, Source: "base.tar", User: "user", Cwd: "/home/user",
		Env: []string{"A=b"}, CreatedAt: testTime, UpdatedAt: testTime,
	}
}

func TestTemplates(t *testing.T) {
	f := &fakeTemplates{}
	h := newHarness(t, func(c *Config) { c.Templates = f })
	c := h.client()
	want := api.Template{
		Name: "base", Digest: "sha256:00", Bytes: 5, Files: 2, Source: "base.tar", User: "user", Cwd: "/home/user", Env: []string{"A=b"},
		CreatedAt: testTime, UpdatedAt: testTime,
	}
	got, err := c.ImportTemplate(t.Context(), "base", strings.NewReader("a tar"), api.ImportOptions{Source: "my base.tar"})
	must.NoError(t, err)
	must.Eq(t, want, got)
	must.Eq(t, fakeTemplates{tenant: "a", name: "base", source: "my base.tar", content: "a tar"}, *f)

	list, err := c.Templates(t.Context())
	must.NoError(t, err)
	must.Eq(t, []api.Template{want}, list)
	got, err = c.Template(t.Context(), "sha256:00/../x y")
	must.NoError(t, err)
	must.Eq(t, "sha256:00/../x y", f.name, must.Sprint("a name passes through the path as it is"))
	must.Eq(t, f.name, got.Name)
	must.NoError(t, c.DeleteTemplate(t.Context(), "base"))
	must.Eq(t, "base", f.name)

	f.err = api.Errorf(404, api.CodeUnknownTemplate, "template base does not exist")
	must.True(t, api.IsNotFound(c.DeleteTemplate(t.Context(), "base")))
	h.do("GET", "/v1/templates/base", "").mustFail(t, 404, api.CodeUnknownTemplate)
	h.do("GET", "/v1/templates/"+strings.Repeat("n", 300), "").mustFail(t, 400, api.CodeInvalid)
	h.do("GET", "/v1/templates/a%00b", "").mustFail(t, 400, api.CodeInvalid)
	h.do("PUT", "/v1/templates/base?source=a%0ab", "x").mustFail(t, 400, api.CodeInvalid)

	h = newHarness(t)
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.do(m, "/v1/templates/base", "").mustFail(t, http.StatusNotImplemented, codeUnsupported)
	}
}

// A template is larger than any buffer: it must be passed on while it comes.
func TestTemplates_areStreamed(t *testing.T) {
	seen := make(chan struct{})
	h := newHarness(t, func(c *Config) { c.Templates = &streamingTemplates{seen: seen} })
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, "first")
		<-seen
		_ = w.Close()
	}()
	_, err := h.client().ImportTemplate(t.Context(), "base", r, api.ImportOptions{})
	must.NoError(t, err)
}

type streamingTemplates struct {
	fakeTemplates
	seen chan struct{}
}

func (s *streamingTemplates) Import(_ context.Context, _ auth.Identity, name, _ string, r io.Reader) (state.Template, error) {
	if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
		return state.Template{}, err
	}
	close(s.seen)
	_, err := io.Copy(io.Discard, r)
	return testTemplate(name), err
}

type fakeFleet []fleet.Node

func (f fakeFleet) Nodes() []fleet.Node { return f }

func TestNodes(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.Fleet = fakeFleet{
			{
				Entry: health.Node{Address: "https://a:7302", Status: health.Passing}, Connected: true,
				Status: fleet.Status{State: fleet.Draining, Reason: "by ops: new kernel", Since: testTime},
				Mark:   fleet.Mark{State: fleet.Draining, Reason: "new kernel", By: "ops", At: testTime},
				Self: nodeapi.Node{
					Checks: []nodeapi.Check{{Name: "disk", Status: nodeapi.CheckWarning, Output: "low"}},
					ID:     "node-1", Name: "one", Version: "0.1.0-dev", APIVersion: 1, Healthy: true, Kernel: "6.18", CPUs: 2, MemoryBytes: 1, DiskBytes: 2,
					DiskFree: 3, Running: 4, MaxSandbox: 5, StartedAt: testTime, Templates: []nodeapi.Template{{Name: "base"}},
					Probes: []nodeapi.Probe{{Name: "idmap", OK: true, Needed: true}, {Name: "netem", Reason: "no module"}},
				},
			},
			{Entry: health.Node{ID: "node-2", Name: "two", Address: "https://b:7302", Status: health.Critical, Reason: "r"}, Problem: "refused", Status: fleet.Status{State: fleet.Unhealthy, Reason: "r", Since: testTime}},
		}
	})
	got, err := h.client().Nodes(t.Context())
	must.NoError(t, err)
	must.Eq(t, []api.Node{
		{
			ID: "node-1", Name: "one", Address: "https://a:7302", Version: "0.1.0-dev", APIVersion: 1, Connected: true, Healthy: true,
			Status: api.NodeDraining, StatusSince: testTime, Reason: "by ops: new kernel",
			Mark:      &api.NodeMark{Status: api.NodeDraining, Reason: "new kernel", By: "ops", At: testTime},
			Checks:    []api.NodeCheck{{Name: "disk", Status: "warning", Output: "low"}},
			Directory: "passing", Kernel: "6.18", CPUs: 2, MemoryBytes: 1, DiskBytes: 2, DiskFree: 3, Running: 4, MaxSandbox: 5, StartedAt: testTime,
			Probes: []api.Probe{{Name: "idmap", OK: true, Needed: true}, {Name: "netem", Reason: "no module"}}, Templates: []string{"base"},
		},
		{
			ID: "node-2", Name: "two", Address: "https://b:7302", Directory: "critical", Status: api.NodeUnhealthy, StatusSince: testTime, Reason: "r",
			Checks: []api.NodeCheck{}, Probes: []api.Probe{}, Templates: []string{},
		},
	}, got)
	newHarness(t).do("GET", "/v1/nodes", "").mustFail(t, http.StatusNotImplemented, codeUnsupported)
	one, err := h.client().Node(t.Context(), "node-1")
	must.NoError(t, err)
	must.Eq(t, got[0], one)
	h.do("GET", "/v1/nodes/node-3", "").mustFail(t, http.StatusNotFound, api.CodeNotFound)
	h.do("GET", "/nodes/node-3", "").mustFail(t, http.StatusNotFound, api.CodeNotFound)
	h.do("POST", "/v1/nodes/node-1/drain", "").mustFail(t, http.StatusForbidden, api.CodeForbidden)
}

// orders notes what was said about nodes.
type orders []string

func (o *orders) MarkNode(_ context.Context, id api.NodeID, order state.NodeOrder, reason, by string) error {
	if id != "node-1" {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "node %s does not exist", id)
	}
	*o = append(*o, fmt.Sprintf("%s=%s (%s)", id, order, reason))
	if by == "" {
		return errors.New("nobody said it")
	}
	return nil
}

func TestNodes_takeOrders(t *testing.T) {
	var said orders
	x := withRights(t, func(c *Config) {
		c.Nodes, c.Fleet = &said, fakeFleet{{Self: nodeapi.Node{ID: "node-1"}, Status: fleet.Status{State: fleet.Degraded, Since: testTime}}}
	})
	c, err := api.New(api.Config{Address: x.http.URL, APIKey: x.admin})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	_, err = c.DrainNode(t.Context(), "node-1", "new kernel")
	must.NoError(t, err)
	_, err = c.MarkNode(t.Context(), "node-1", "")
	must.NoError(t, err)
	n, err := c.ResumeNode(t.Context(), "node-1")
	must.NoError(t, err)
	must.Eq(t, api.NodeDegraded, n.Status)
	for _, status := range []string{"draining", "unhealthy", "ready"} {
		must.Eq(t, http.StatusNoContent, x.as(x.admin, "POST", "/nodes/node-1", `{"status":"`+status+`","clusterID":"c"}`).status)
	}
	must.Eq(t, orders{
		"node-1=draining (new kernel)", "node-1=unhealthy ()", "node-1= ()", "node-1=draining ()", "node-1=unhealthy ()", "node-1= ()",
	}, said)
	x.as(x.admin, "POST", "/nodes/node-1", `{"status":"connecting"}`).mustFail(t, http.StatusBadRequest, api.CodeInvalid)
	x.as(x.admin, "POST", "/nodes/node-2", `{"status":"ready"}`).mustFail(t, http.StatusNotFound, api.CodeNotFound)
	x.as(x.key("acme", rbac.RoleTenantAdmin), "POST", "/nodes/node-1", `{"status":"ready"}`).mustFail(t, http.StatusForbidden, api.CodeForbidden)
	var e api.E2BNode
	must.NoError(t, json.Unmarshal([]byte(x.as(x.admin, "GET", "/nodes/node-1", "").body), &e))
	must.Eq(t, "ready", e.Status, must.Sprint("the contract has no word for degraded"))
	must.Eq(t, testTime, e.StatusChangedAt)
}

func TestCheckNode(t *testing.T) {
	must.NoError(t, CheckNode(nodeapi.Node{ID: "n", APIVersion: nodeapi.Version, Version: "0.1.0"}))
	for _, n := range []nodeapi.Node{
		{ID: "n", APIVersion: nodeapi.Version, Version: "0.0.9"},
		{ID: "n", APIVersion: nodeapi.Version, Version: "0.1.0-alpha"},
		{ID: "n", APIVersion: nodeapi.Version, Version: ""},
		{ID: "n", APIVersion: nodeapi.Version + 1, Version: "0.1.0"},
	} {
		must.Eq(t, 400, api.StatusOf(CheckNode(n)), must.Sprintf("%+v", n))
	}
	must.ErrorContains(t, CheckNode(nodeapi.Node{ID: "n", APIVersion: nodeapi.Version, Version: "0.0.9"}), "0.1.0-dev")
}

// fakeWatcher is a table that tells its changes.
type fakeWatcher struct {
	mu      sync.Mutex
	rows    []state.Sandbox
	index   uint64
	changed chan struct{}
	tenants []string
}

func (f *fakeWatcher) Watch(tenant string) ([]state.Sandbox, uint64, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tenants = append(f.tenants, tenant)
	return f.rows, f.index, f.changed, nil
}

func (f *fakeWatcher) set(tell bool, rows ...state.Sandbox) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = rows
	f.index++
	if tell {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

func TestEvents(t *testing.T) {
	f := &fakeWatcher{changed: make(chan struct{})}
	h := newHarness(t, func(c *Config) { c.Watcher, c.BeatInterval = f, 20*time.Millisecond })
	one, two := sandbox(testID), sandbox(otherID)
	f.set(true, one)
	s, err := h.client().Events(t.Context())
	must.NoError(t, err)
	defer s.Close()
	ev, err := s.Next()
	must.NoError(t, err)
	must.Eq(t, api.EventSync, ev.Type)
	must.Len(t, 1, ev.Sandboxes)
	next := func() api.Event {
		for {
			ev, err := s.Next()
			must.NoError(t, err)
			if ev.Type != api.EventBeat {
				return ev
			}
		}
	}
	one.State, one.ModifyIndex = state.Stopping, 5
	f.set(true, one, two)
	ev = next()
	must.Eq(t, api.EventChanged, ev.Type)
	must.Eq(t, "stopping", ev.Sandbox.State)
	ev = next()
	must.Eq(t, otherID, ev.Sandbox.ID)
	f.set(false, two) // a change that nobody tells, as after a restored snapshot, is seen with the next beat
	ev = next()
	must.Eq(t, api.EventRemoved, ev.Type)
	must.Eq(t, testID, ev.Sandbox.ID)
	must.Eq(t, "a", f.tenants[0])
	h.srv.close()
	for {
		if _, err = s.Next(); err != nil {
			break
		}
	}
	must.ErrorIs(t, err, io.EOF)
	newHarness(t).do("GET", "/v1/events", "").mustFail(t, http.StatusNotImplemented, codeUnsupported)
}

func TestMetrics(t *testing.T) {
	h := newHarness(t)
	h.do("GET", "/v2/sandboxes", "")
	h.do("GET", "/v2/sandboxes", "")
	h.do("GET", "/nowhere", "")
	h.srv.Metrics().SetGaugeWithLabels([]string{"soulbox", "a-b.c"}, 2.5, []metrics.Label{{Name: "x y", Value: "q\"\\\nz"}})
	a := h.do("GET", "/v1/metrics", "")
	must.Eq(t, 200, a.status)
	must.Eq(t, "text/plain; version=0.0.4; charset=utf-8", a.header.Get("Content-Type"))
	for _, want := range []string{
		"# TYPE soulbox_http_requests counter\n",
		`soulbox_http_requests{route="GET /v2/sandboxes",status="200"} 2` + "\n",
		`soulbox_http_requests{route="none",status="404"} 1` + "\n",
		"# TYPE soulbox_http_duration_ms summary\n",
		`soulbox_http_duration_ms_count{route="GET /v2/sandboxes"} 2` + "\n",
		"# TYPE soulbox_a_b_c gauge\n" + `soulbox_a_b_c{x_y="q\"\\\nz"} 2.5` + "\n",
		"soulbox_metrics_dropped_total 0\n",
	} {
		must.StrContains(t, a.body, want)
	}
}

func TestMetrics_areBounded(t *testing.T) {
	m := NewMetrics()
	for i := range maxSeries + 10 {
		m.IncrCounterWithLabels([]string{"c"}, 1, []metrics.Label{{Name: "i", Value: strings.Repeat("x", i%7) + string(rune('a'+i%26)) + time.Duration(i).String()}})
	}
	must.Eq(t, maxSeries, len(m.series))
	must.StrContains(t, string(m.text()), "soulbox_metrics_dropped_total 10\n")
}
