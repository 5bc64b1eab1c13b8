package attack

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/server"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	flag.Parse()
	sandboxtest.Main(m)
}

// idBase is where the ids of an arena's sandboxes begin: no other test uses them, so a process with one of them is ours.
const idBase = 0x50000000

// An arena is a whole SoulBox on this machine: a node, a control service, a template that holds the intruder, canaries on
// the host, and a neighbour sandbox that must never notice anything.
type arena struct {
	dir       string // state, run and control folders, the template and the canaries
	parent    string // of the control groups
	socket    string // of the node
	addr      string // of the API
	node      *nodeapi.Client
	api       *api.Client
	core      *core.Core
	log       *logSink
	lower     string
	neighbour nodeapi.Sandbox
	sums      string // of the neighbour's files
}

// logSink keeps what the services log.
type logSink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logSink) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logSink) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// templates is the template service as the server wants it.
type templates struct{ *template.Service }

func (t templates) Import(ctx context.Context, who auth.Identity, name, source string, r io.Reader) (state.Template, error) {
	return t.Service.Import(ctx, who.Tenant, name, source, r)
}

func (t templates) List(_ context.Context, tenant string) ([]state.Template, error) {
	return t.Service.List(tenant)
}

func (t templates) Get(ctx context.Context, tenant, name string) (state.Template, error) {
	return t.Service.Resolve(ctx, tenant, name)
}

// newArena starts one. At the test's end nothing of it may be left on the machine.
func newArena(t *testing.T, changes ...func(*node.Config)) *arena {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir, err := os.MkdirTemp("", "sba")
	must.NoError(t, err)
	must.NoError(t, os.Chmod(dir, 0o755))
	a := &arena{dir: dir, parent: "soulbox-test-" + filepath.Base(dir), socket: dir + "/r/node.sock", lower: dir + "/lower", log: &logSink{}}
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	t.Cleanup(func() {
		if m, err := cgroup.Detect("/sys/fs/cgroup", a.parent); err == nil {
			must.NoError(t, m.Close())
		}
	})
	must.NoError(t, sandboxtest.MakeLower(a.lower))
	must.NoError(t, sandboxtest.Build(a.lower+"/bin/intruder", "github.com/soulbox-dev/soulbox/e2e/attack/intruder"))
	a.plantCanaries(t)

	log := hclog.New(&hclog.LoggerOptions{Output: a.log, Level: hclog.Debug})
	config := node.Config{
		StateDir: dir + "/s", RunDir: dir + "/r", InitPath: sandboxtest.Init(t), CgroupParent: a.parent, IDRangeBase: idBase,
		Version: version.Version, Logger: log.Named("node"),
	}
	for _, change := range changes {
		change(&config)
	}
	n, err := node.New(config)
	must.NoError(t, err)
	inBackground(t, n.Run)
	t.Cleanup(func() { // before the node ends
		must.SliceEmpty(t, a.mounts(t), must.Sprint("mounts are left"))
	})
	a.node = nodeapi.NewUnix(a.socket)
	t.Cleanup(a.node.Close)
	directory, err := static.New(health.Node{Address: "unix://" + a.socket, Status: health.Passing})
	must.NoError(t, err)
	placer := local.New(a.node)
	t.Cleanup(placer.Close)
	a.core, err = core.Open(t.Context(), core.Config{
		DataDir: dir + "/c", Directory: directory, Placer: placer, CheckNode: server.CheckNode, Logger: log.Named("control"),
	})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, a.core.Close()) })
	wait, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must.NoError(t, a.core.ConnectNodes(wait, 1))
	front := edge.New(edge.Config{Sandboxes: a.core.Reach()})
	t.Cleanup(front.Close)
	srv, err := server.New(server.Config{
		Edge:      front,
		Lifecycle: a.core.Sandboxes, Auth: auth.NewChain(a.core.Auth), Access: a.core.Access, Tenants: a.core.State, Policy: a.core.State, Templates: templates{a.core.Templates}, Fleet: a.core.Fleet, Watcher: a.core.State,
		Logger: log.Named("http"),
	})
	must.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	inBackground(t, func(ctx context.Context) error { return srv.Run(ctx, l) })
	a.addr = "http://" + l.Addr().String()
	a.api, err = api.New(api.Config{Address: a.addr, APIKey: a.core.Bootstrap.E2BKey()})
	must.NoError(t, err)
	t.Cleanup(a.api.Close)
	t.Cleanup(func() { a.deleteAll(t) })

	tar := exec.Command("tar", "-C", a.lower, "--numeric-owner", "-cf", "-", ".")
	out, err := tar.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, tar.Start())
	_, err = a.api.ImportTemplate(t.Context(), "base", out, api.ImportOptions{Source: "the test's own"})
	must.NoError(t, err)
	must.NoError(t, tar.Wait())
	a.neighbour = a.create(t)
	a.sums = a.neighbourSums(t)
	return a
}

// deleteAll ends what tests left.
func (a *arena) deleteAll(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	list, err := a.node.List(ctx)
	must.NoError(t, err)
	for _, sb := range list {
		if err := a.node.Delete(ctx, sb.ID); err != nil && !api.IsNotFound(err) {
			t.Error(err)
		}
	}
}

// inBackground runs f until the test's end.
func inBackground(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// create makes a sandbox on the node, with limits that no case outlives for long.
func (a *arena) create(t *testing.T, changes ...func(*nodeapi.CreateRequest)) nodeapi.Sandbox {
	t.Helper()
	sb, err := a.node.Create(t.Context(), a.request(changes...))
	must.NoError(t, err)
	t.Cleanup(func() { a.destroy(t, sb.ID) })
	return sb
}

func (a *arena) request(changes ...func(*nodeapi.CreateRequest)) nodeapi.CreateRequest {
	r := nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: "base", Profile: "default", Owner: nodeapi.Owner{Kind: "test"},
		Limits:   nodeapi.Limits{MemoryBytes: 256 << 20, PIDs: 128, CPUMillis: 1000},
		Deadline: time.Now().Add(10 * time.Minute),
	}
	for _, c := range changes {
		c(&r)
	}
	return r
}

func profile(p string) func(*nodeapi.CreateRequest) {
	return func(r *nodeapi.CreateRequest) { r.Profile = p }
}

// destroyTime is the generous bound on the end of any sandbox, whatever runs in it: machines may be busy.
const destroyTime = time.Minute

// destroy ends a sandbox and says how long it took.
func (a *arena) destroy(t *testing.T, id api.SandboxID) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), destroyTime)
	defer cancel()
	start := time.Now()
	if err := a.node.Delete(ctx, id); err != nil && !api.IsNotFound(err) {
		t.Errorf("destroy %s: %v", id, err)
	}
	return time.Since(start)
}

// result is how a program in a sandbox ended.
type result struct {
	out, err string
	exit     frame.ExitBody
}

// run runs a program in a sandbox to its end.
func (a *arena) run(t *testing.T, id api.SandboxID, user string, argv ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	exit, err := a.node.Run(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{Argv: argv, User: user}}, nil, &out, &errs)
	must.NoError(t, err, must.Sprintf("run %q", argv))
	return result{out.String(), errs.String(), exit}
}

// ok is run for programs that must succeed.
func (a *arena) ok(t *testing.T, id api.SandboxID, user string, argv ...string) string {
	t.Helper()
	r := a.run(t, id, user, argv...)
	must.Eq(t, 0, r.exit.Code, must.Sprintf("%q: %s", argv, r.err))
	return r.out
}

// start starts a program in a sandbox and leaves it.
func (a *arena) start(t *testing.T, id api.SandboxID, user string, argv ...string) guest.ProcessInfo {
	t.Helper()
	p, err := a.node.Start(t.Context(), id, nodeapi.ExecRequest{Start: guest.Start{Argv: argv, User: user}})
	must.NoError(t, err, must.Sprintf("start %q", argv))
	return p
}

func (a *arena) neighbourSums(t *testing.T) string {
	t.Helper()
	return a.ok(t, a.neighbour.ID, "user", "intruder", "sums", "/bin/setuid-id", "/bin/bash", "/bin/intruder", "/etc/marker", "/etc/passwd", "/.soulbox/init")
}

// until polls.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func short(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}
