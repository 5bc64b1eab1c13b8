package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// The keys of the two tenants of every test.
const (
	keyA = "sb_00000000000000aa_00000000000000000000000000000000000000000000000000000000000000aa"
	keyB = "e2b_00000000000000bb00000000000000000000000000000000000000000000000000000000000000bb"
)

const (
	testID  api.SandboxID = "iaaaaaaaaaaaaaaaaaaaa"
	otherID api.SandboxID = "ibbbbbbbbbbbbbbbbbbbb"
)

var testTime = time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)

// fakeAuth knows keyA and keyB.
type fakeAuth struct{}

func (fakeAuth) Authenticate(_ context.Context, c auth.Credentials) (auth.Identity, error) {
	key := c.Key
	if key == "" {
		key = c.Bearer
	}
	switch key {
	case keyA:
		return identity("00000000000000aa", "a"), nil
	case keyB:
		return identity("00000000000000bb", "b"), nil
	}
	return auth.Identity{}, api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized, "the API key is not valid")
}

// identity is a key with all rights in its tenant.
func identity(id, tenant string) auth.Identity {
	return auth.Identity{
		KeyID: id, Kind: auth.KindKey, Subject: id, Tenant: tenant, Name: "key of " + tenant, Roles: []string{rbac.RoleTenantAdmin}, Scope: tenant,
	}
}

// noPolicy has the built-in roles alone.
type noPolicy struct{}

func (noPolicy) PolicyVersion() uint64 { return 1 }

func (noPolicy) Policy() ([]state.Role, []state.Binding, error) { return nil, nil, nil }

// fakeLifecycle keeps sandboxes in memory, and notes what it was asked.
type fakeLifecycle struct {
	mu        sync.Mutex
	sandboxes map[api.SandboxID]state.Sandbox
	node      *nodeapi.Client
	health    lifecycle.Health
	err       error // of the next call
	panics    any   // of the next create
	block     bool  // create waits for the end of its context

	snapshots []state.Snapshot // the newest first
	secrets   []string         // that have changed

	created  []lifecycle.CreateParams
	lists    []listCall
	timeouts []timeoutCall
	limits   []lifecycle.LimitChange
	nextList state.List
}

type listCall struct {
	Filter state.Filter
	Order  state.Order
	Page   state.Page
}

type timeoutCall struct {
	Op string
	ID api.SandboxID
	D  time.Duration
}

var _ Lifecycle = (*fakeLifecycle)(nil)

func (f *fakeLifecycle) takeErr() error {
	err := f.err
	f.err = nil
	return err
}

func (f *fakeLifecycle) find(tenant string, id api.SandboxID) (state.Sandbox, error) {
	sb, ok := f.sandboxes[id]
	if !ok || sb.Tenant != tenant {
		return state.Sandbox{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s not found", id)
	}
	return sb, f.takeErr()
}

func (f *fakeLifecycle) Create(ctx context.Context, p lifecycle.CreateParams) (state.Sandbox, []guest.Step, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.panics != nil {
		panic(f.panics)
	}
	if f.block {
		<-ctx.Done()
		return state.Sandbox{}, nil, ctx.Err()
	}
	f.created = append(f.created, p)
	if err := f.takeErr(); err != nil {
		return state.Sandbox{}, nil, err
	}
	sb := state.Sandbox{
		ID: testID, Tenant: p.Caller.Tenant, Template: p.Template, Digest: "sha256:00", Node: "node-1", State: state.Running,
		CreatedAt: testTime, StartedAt: testTime.Add(time.Second), EndAt: testTime.Add(p.Timeout), MaxEndAt: testTime.Add(24 * time.Hour),
		CPUMillis: 1500, MemoryMB: 512, DiskMB: 1024, Metadata: p.Metadata, EnvVars: p.EnvVars, KeyID: p.Caller.KeyID,
		Lifecycle: p.Lifecycle, AllowInternetAccess: p.AllowInternetAccess, Network: p.Network,
	}
	f.sandboxes[sb.ID] = sb
	return sb, []guest.Step{{Name: "place", Nanos: 1000}, {Name: "start", Nanos: 2000}}, nil
}

func (f *fakeLifecycle) Get(_ context.Context, tenant string, id api.SandboxID) (state.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.find(tenant, id)
}

func (f *fakeLifecycle) List(_ context.Context, fl state.Filter, o state.Order, p state.Page) (state.List, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists = append(f.lists, listCall{fl, o, p})
	l := f.nextList
	f.nextList = state.List{}
	return l, f.takeErr()
}

func (f *fakeLifecycle) Delete(_ context.Context, tenant string, id api.SandboxID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(tenant, id); err != nil {
		return err
	}
	delete(f.sandboxes, id)
	return nil
}

func (f *fakeLifecycle) timeout(op, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timeouts = append(f.timeouts, timeoutCall{op, id, d})
	return f.find(tenant, id)
}

func (f *fakeLifecycle) SetTimeout(_ context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	return f.timeout("set", tenant, id, d)
}

func (f *fakeLifecycle) Refresh(_ context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error) {
	return f.timeout("refresh", tenant, id, d)
}

func (f *fakeLifecycle) Connect(_ context.Context, tenant string, id api.SandboxID, d time.Duration, _ lifecycle.Keep) (state.Sandbox, bool, error) {
	sb, err := f.timeout("connect", tenant, id, d)
	return sb, sb.State == state.Paused, err
}

func (f *fakeLifecycle) NodeOf(_ context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.find(tenant, id)
	return f.node, err
}

func (f *fakeLifecycle) Pause(_ context.Context, tenant string, id api.SandboxID, keep lifecycle.Keep) (state.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, err := f.find(tenant, id)
	if err == nil && sb.State != state.Running {
		err = api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s", id, sb.State)
	}
	if err != nil {
		return state.Sandbox{}, err
	}
	sb.State, sb.PausedFiles = state.Paused, keep == lifecycle.KeepFiles
	f.sandboxes[id] = sb
	return sb, nil
}

func (f *fakeLifecycle) Resume(_ context.Context, tenant string, id api.SandboxID, d time.Duration, _ lifecycle.Keep) (state.Sandbox, error) {
	return f.timeout("resume", tenant, id, d)
}

func (f *fakeLifecycle) TakeSnapshot(_ context.Context, p lifecycle.SnapshotParams) (state.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find(p.Caller.Tenant, p.Sandbox); err != nil {
		return state.Snapshot{}, err
	}
	name, tag, _ := strings.Cut(p.Name, ":")
	sn := state.Snapshot{
		ID: api.SnapshotID(fmt.Sprintf("s%020d", len(f.snapshots)+1)), Tenant: p.Caller.Tenant, Sandbox: p.Sandbox, Name: name, Tag: tag,
		Description: p.Description, Labels: p.Labels, State: state.SnapshotReady, CreatedAt: testTime, ReadyAt: testTime,
	}
	f.snapshots = append([]state.Snapshot{sn}, f.snapshots...)
	return sn, nil
}

func (f *fakeLifecycle) Snapshot(_ context.Context, tenant, ref string) (state.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, sn := range f.snapshots {
		if sn.Tenant == tenant && (string(sn.ID) == ref || sn.Name == ref) {
			return sn, nil
		}
	}
	return state.Snapshot{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "snapshot %s does not exist", ref)
}

func (f *fakeLifecycle) Snapshots(_ context.Context, tenant string) ([]state.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []state.Snapshot
	for _, sn := range f.snapshots {
		if sn.Tenant == tenant {
			out = append(out, sn)
		}
	}
	return out, nil
}

func (f *fakeLifecycle) DeleteSnapshot(ctx context.Context, tenant, ref string, _ bool) error {
	sn, err := f.Snapshot(ctx, tenant, ref)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshots = slices.DeleteFunc(f.snapshots, func(o state.Snapshot) bool { return o.ID == sn.ID })
	return f.takeErr()
}

func (f *fakeLifecycle) Fork(_ context.Context, caller auth.Identity, id api.SandboxID, count int, d time.Duration) ([]lifecycle.Forked, error) {
	sb, err := f.timeout("fork", caller.Tenant, id, d)
	out := make([]lifecycle.Forked, count)
	for i := range out {
		out[i].Sandbox = sb
	}
	if count > 1 {
		out[1] = lifecycle.Forked{Err: api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "no room")}
	}
	return out, err
}

func (f *fakeLifecycle) SetNetwork(_ context.Context, tenant string, id api.SandboxID, n api.NetworkConfig, internet *bool) (state.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, ok := f.sandboxes[id]
	if !ok || sb.Tenant != tenant {
		return state.Sandbox{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s does not exist", id)
	}
	sb.Network, _ = json.Marshal(n)
	sb.AllowInternetAccess = internet
	f.sandboxes[id] = sb
	return sb, nil
}

func (f *fakeLifecycle) SecretChanged(_ context.Context, tenant, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets = append(f.secrets, tenant+"/"+name)
	return f.takeErr()
}

func (f *fakeLifecycle) SetNetworkPolicy(ctx context.Context, tenant string, id api.SandboxID, p api.NetworkPolicy) error {
	_, err := f.SetNetwork(ctx, tenant, id, api.NetworkConfig{AllowOut: p.Allow, DenyOut: p.Deny}, p.Internet)
	return err
}

func (f *fakeLifecycle) NetworkWith(tenant string, id api.SandboxID, p api.NetworkPolicy) (nodeapi.Network, error) {
	_, err := f.find(tenant, id)
	return nodeapi.Network{Layers: []nodeapi.NetworkLayer{{Name: "sandbox", NetworkPolicy: p}}}, err
}

func (f *fakeLifecycle) Published(ctx context.Context, tenant string, id api.SandboxID) ([]api.PublishedPort, error) {
	node, err := f.NodeFor(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	return node.Published(ctx, id)
}

func (f *fakeLifecycle) SetPublished(ctx context.Context, tenant string, id api.SandboxID, want []api.PublishedPort) ([]api.PublishedPort, error) {
	node, err := f.NodeFor(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	return node.SetPublished(ctx, id, want)
}

func (f *fakeLifecycle) Elsewhere(string, api.SandboxID) ([]api.NetworkMember, error) {
	return nil, nil
}

func (f *fakeLifecycle) TenantNetwork(context.Context, string) error { return nil }

func (f *fakeLifecycle) ShapeNetwork(ctx context.Context, tenant string, id api.SandboxID, s api.NetworkShape) error {
	_, err := f.SetNetwork(ctx, tenant, id, api.NetworkConfig{SoulBox: &api.NetworkOptions{Shape: &s}}, nil)
	return err
}

func (f *fakeLifecycle) JoinNetworks(ctx context.Context, tenant string, id api.SandboxID, list []api.NetworkMember) error {
	_, err := f.SetNetwork(ctx, tenant, id, api.NetworkConfig{SoulBox: &api.NetworkOptions{Join: list}}, nil)
	return err
}

func (f *fakeLifecycle) SetLimits(_ context.Context, tenant string, id api.SandboxID, c lifecycle.LimitChange) (state.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limits = append(f.limits, c)
	if err := f.takeErr(); err != nil {
		return state.Sandbox{}, err
	}
	return f.find(tenant, id)
}

func (f *fakeLifecycle) Health(_ context.Context, tenant string, id api.SandboxID) (lifecycle.Health, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.find(tenant, id)
	return f.health, err
}

func (f *fakeLifecycle) NodeFor(_ context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sb, err := f.find(tenant, id)
	if err == nil && sb.State.Ended() {
		err = api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s not found", id)
	}
	return f.node, err
}

// sandbox returns a running sandbox of tenant a.
func sandbox(id api.SandboxID) state.Sandbox {
	yes := true
	return state.Sandbox{
		ID: id, Tenant: "a", Template: "base", Digest: "sha256:00", Node: "node-1", State: state.Running,
		CreatedAt: testTime, StartedAt: testTime.Add(time.Second), EndAt: testTime.Add(time.Minute), MaxEndAt: testTime.Add(time.Hour),
		CPUMillis: 1500, MemoryMB: 512, DiskMB: 1024, Metadata: map[string]string{"k": "v"},
		EnvVars: map[string]string{"SECRET": "hunter2"}, KeyID: "00000000000000aa",
		Lifecycle: state.Lifecycle{OnTimeout: state.OnTimeoutKill}, AllowInternetAccess: &yes,
	}
}

// harness is a server with fakes behind it.
type harness struct {
	t    *testing.T
	srv  *Server
	http *httptest.Server
	life *fakeLifecycle
	log  *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newHarness starts a server. change may alter its configuration.
func newHarness(t *testing.T, change ...func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, life: &fakeLifecycle{sandboxes: map[api.SandboxID]state.Sandbox{}}, log: &logBuffer{}}
	cfg := Config{
		Lifecycle: h.life, Auth: fakeAuth{}, Access: rbac.New(noPolicy{}),
		Logger: hclog.New(&hclog.LoggerOptions{Output: h.log, Level: hclog.Trace}),
	}
	for _, c := range change {
		c(&cfg)
	}
	srv, err := New(cfg)
	must.NoError(t, err)
	h.srv = srv
	h.http = httptest.NewServer(srv.Handler())
	t.Cleanup(func() {
		srv.close()
		h.http.Close()
		srv.streams.wait(10 * time.Second)
	})
	return h
}

// client returns a Go client with tenant a's key.
func (h *harness) client() *api.Client {
	h.t.Helper()
	c, err := api.New(api.Config{Address: h.http.URL, APIKey: keyA})
	must.NoError(h.t, err)
	h.t.Cleanup(c.Close)
	return c
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// object returns the body as a JSON object.
func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	must.NoError(t, json.Unmarshal([]byte(a.body), &m), must.Sprintf("body %q", a.body))
	return m
}

// mustFail checks that an answer is an error in the one shape.
func (a answer) mustFail(t *testing.T, status int, code string) string {
	t.Helper()
	must.Eq(t, status, a.status, must.Sprintf("body %q", a.body))
	must.Eq(t, "application/json", a.header.Get("Content-Type"))
	m := a.object(t)
	must.Eq(t, any(float64(status)), m["code"])
	must.Eq(t, any(code), m["error_code"])
	msg, _ := m["message"].(string)
	must.NotEq(t, "", msg)
	return msg
}

// do makes a request with tenant a's key, unless a header says otherwise: pairs of name and value; "" removes.
func (h *harness) do(method, path, body string, header ...string) answer {
	h.t.Helper()
	var r io.Reader
	if body != "" {
		r = struct{ io.Reader }{bytes.NewReader([]byte(body))} // its length is not known: chunked
	}
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.http.URL+path, r)
	must.NoError(h.t, err)
	req.Header.Set("X-API-Key", keyA)
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := h.http.Client().Do(req)
	must.NoError(h.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(h.t, err)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// keysOf returns the sorted keys of an object.
func keysOf(m map[string]any) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sortStrings(out)
	return out
}
