package api

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { sandboxtest.Main(m) }

// stack is a node and a control service with its API, and a client with the bootstrap key.
type stack struct {
	addr   string
	key    string
	client *api.Client
	core   *core.Core
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

// newStack starts all of it in folders and control groups of its own. At the end nothing of it may be left on the machine.
func newStack(t testing.TB) *stack {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir, err := os.MkdirTemp("", "sbe")
	must.NoError(t, err)
	must.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	log := hclog.NewNullLogger()
	if testing.Verbose() {
		log = hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Info})
	}
	parent := "soulbox-test-" + filepath.Base(dir)
	t.Cleanup(func() {
		if m, err := cgroup.Detect("/sys/fs/cgroup", parent); err == nil {
			must.NoError(t, m.Close())
		}
	})
	n, err := node.New(node.Config{
		StateDir: dir + "/s", RunDir: dir + "/r", InitPath: sandboxtest.Init(t), CgroupParent: parent, Version: version.Version, Logger: log.Named("node"),
		SampleInterval: sampleInterval(t), SampleWindow: time.Minute,
	})
	must.NoError(t, err)
	inBackground(t, n.Run)
	t.Cleanup(func() { // before the node ends
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must.NoError(t, err)
		must.StrNotContains(t, string(mounts), dir)
	})

	sock := dir + "/r/node.sock"
	client := nodeapi.NewUnix(sock)
	t.Cleanup(client.Close)
	directory, err := static.New(health.Node{Address: "unix://" + sock, Status: health.Passing})
	must.NoError(t, err)
	placer := local.New(client)
	t.Cleanup(placer.Close)
	c, err := core.Open(t.Context(), core.Config{
		DataDir: dir + "/c", Directory: directory, Placer: placer, CheckNode: server.CheckNode, Logger: log.Named("control"),
	})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, c.Close()) })
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, c.ConnectNodes(wait, 1))

	return serve(t, c, log)
}

// serve starts the API of a core with a template.
func serve(t testing.TB, c *core.Core, log hclog.Logger) *stack {
	t.Helper()
	front := edge.New(edge.Config{Sandboxes: c.Reach()})
	t.Cleanup(front.Close)
	srv, err := server.New(server.Config{
		Front:     front.Wrap,
		Edge:      front,
		Lifecycle: c.Sandboxes, Auth: auth.NewChain(c.Auth), Access: c.Access, Tenants: c.State, Policy: c.State, Templates: templates{c.Templates}, Fleet: c.Fleet, Watcher: c.State, Pools: c.Pools,
		Logger: log.Named("http"),
	})
	must.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	inBackground(t, func(ctx context.Context) error { return srv.Run(ctx, l) })
	s := &stack{addr: "http://" + l.Addr().String(), key: c.Bootstrap.E2BKey(), core: c}
	s.client, err = api.New(api.Config{Address: s.addr, APIKey: s.key})
	must.NoError(t, err)
	t.Cleanup(s.client.Close)
	t.Cleanup(s.deleteAll(t))

	tar := exec.Command("tar", "-C", sandboxtest.Lower(t), "--numeric-owner", "-cf", "-", ".")
	out, err := tar.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, tar.Start())
	_, err = s.client.ImportTemplate(t.Context(), "base", out, api.ImportOptions{Source: "the test's own"})
	must.NoError(t, err)
	must.NoError(t, tar.Wait())
	return s
}

// deleteAll ends what a test left.
func (s *stack) deleteAll(t testing.TB) func() {
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for sb, err := range s.client.AllSandboxes(ctx, api.ListOptions{}) {
			must.NoError(t, err)
			if err := s.client.DeleteSandbox(ctx, sb.ID); err != nil && !api.IsNotFound(err) {
				t.Error(err)
			}
		}
	}
}

// inBackground runs f until the test's end.
func inBackground(t testing.TB, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Error(err)
		}
	})
}

// sampleInterval is short where a test waits for samples; a benchmark has what a node has.
func sampleInterval(t testing.TB) time.Duration {
	if _, is := t.(*testing.B); is {
		return node.DefaultSampleInterval
	}
	return 200 * time.Millisecond
}
