// Package cluster tests the control service's seams against a whole cluster: Nomad with the driver, Consul, Vault and the
// node daemon, as `soulbox dev -cluster` runs them.
//
// It owns the clusters that its tests start, and checks that they leave nothing on the host.
package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/consul"
	"github.com/soulbox-dev/soulbox/control/placement/nomad"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/e2e/host"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { binaries.Main(m) }

// template is the name of the small template that start imports. It holds no program: a sandbox of it runs PID 1 only.
const template = "empty"

// idBase is the first host id of these tests' sandboxes, beside those of other tests and of a real node.
const idBase = 1 << 29

// cluster is a cluster with the parts of a control service that this package tests.
type cluster struct {
	*dev.Cluster
	dir    string
	placer *nomad.Placer
	nodes  *consul.Directory
	node   *nodeapi.Client // over mutual TLS, as the control service
	host   host.Node
}

func start(t testing.TB) *cluster {
	t.Helper()
	return startWith(t, nil)
}

// startWith starts a cluster whose Nomad client has plugins of devices, by their paths, and whose node has more lines in its configuration.
func startWith(t testing.TB, devices map[string]agent.NomadPlugin, config ...string) *cluster {
	t.Helper()
	for _, name := range []string{"nomad", "consul", "vault"} {
		agenttest.Binary(t, name)
	}
	// The path of a unix socket has to be short: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbcl")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	cgroup := filepath.Base(dir)
	begin := time.Now()
	c, err := dev.Start(t.Context(), dev.Config{
		Dir: dir, Driver: binaries.Path(t, "nomad-driver-soulbox"), Init: binaries.Path(t, "soulbox-init"), DevicePlugins: devices,
		NodeConfig: fmt.Sprintf("cgroup_parent = %q\nid_range_base = %d\n", cgroup, idBase) + strings.Join(config, ""),
	})
	must.NoError(t, err)
	t.Logf("the cluster is ready after %s", time.Since(begin).Round(time.Millisecond))
	out := &cluster{Cluster: c, dir: dir, host: host.Node{
		StateDir: filepath.Join(dir, "node", "state"), RunDir: filepath.Join(dir, "run"), CgroupParent: cgroup,
	}}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "*", "*.log"))
			more, _ := filepath.Glob(filepath.Join(dir, "nomad", "*", "*.log"))
			for _, log := range append(logs, more...) {
				data, _ := os.ReadFile(log)
				t.Logf("end of %s:\n%s", log, data[max(0, len(data)-3<<10):])
			}
		}
		if out.Cluster != nil {
			must.NoError(t, c.Stop(context.Background()))
		}
		out.host.NothingLeftOfNode(t)
	})
	out.placer, err = nomad.New(c.NomadConfig())
	must.NoError(t, err)
	t.Cleanup(out.placer.Close)
	out.nodes, err = consul.Open(consul.Config{Address: c.ConsulAddress()})
	must.NoError(t, err)
	t.Cleanup(out.nodes.Close)

	entry := out.entry(t, func(n health.Node) bool { return n.Status == health.Passing })
	must.Eq(t, c.NodeID(), entry.ID)
	u, err := url.Parse(entry.Address)
	must.NoError(t, err)
	cfg, err := c.NodeTLS(entry)
	must.NoError(t, err)
	out.node = nodeapi.NewTLS(u.Host, cfg)
	t.Cleanup(out.node.Close)
	_, err = out.node.ImportTemplate(t.Context(), template, emptyTemplate(t))
	must.NoError(t, err)
	return out
}

// entry waits for a view of the directory with one node that check accepts.
func (c *cluster) entry(t testing.TB, check func(health.Node) bool) health.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var v health.View
	for {
		var err error
		v, err = c.nodes.Nodes(ctx, v.Index)
		if err != nil {
			t.Fatalf("%v; the last view is %+v", err, v)
		}
		if len(v.Nodes) == 1 && check(v.Nodes[0]) {
			return v.Nodes[0]
		}
	}
}

// emptyTemplate is a root file system with what every sandbox needs, and no program.
func emptyTemplate(t testing.TB) *bytes.Reader {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, dir := range []string{"etc", "dev", "proc", "sys", "tmp", "home", "home/user", "root", "run"} {
		must.NoError(t, w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}))
	}
	passwd := []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
	must.NoError(t, w.WriteHeader(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(passwd))}))
	_, err := w.Write(passwd)
	must.NoError(t, err)
	must.NoError(t, w.Close())
	return bytes.NewReader(buf.Bytes())
}

// events follows a node's stream.
type events struct {
	mu      sync.Mutex
	made    map[api.SandboxID]int
	running map[api.SandboxID]time.Time
	ran     map[api.SandboxID]int
	old     map[api.SandboxID]bool // before forget
	changed chan struct{}
}

func (c *cluster) follow(t testing.TB) *events {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := c.node.Events(ctx, "", 0)
	must.NoError(t, err)
	e := &events{made: map[api.SandboxID]int{}, running: map[api.SandboxID]time.Time{}, ran: map[api.SandboxID]int{}, old: map[api.SandboxID]bool{}, changed: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			ev, err := stream.Next()
			if err != nil {
				return
			}
			e.see(ev)
		}
	}()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, stream.Close())
		<-done
	})
	return e
}

func (e *events) see(ev nodeapi.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch ev.Type {
	case nodeapi.EventCreated:
		e.made[ev.ID]++
	case nodeapi.EventRunning:
		e.running[ev.ID] = time.Now()
		e.ran[ev.ID]++
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// waitRunning returns when the node's report that id runs came.
func (e *events) waitRunning(ctx context.Context, id api.SandboxID) (time.Time, error) {
	for {
		e.mu.Lock()
		at, changed := e.running[id], e.changed
		e.mu.Unlock()
		if !at.IsZero() {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return at, ctx.Err()
		case <-changed:
		}
	}
}

func (e *events) madeTimes(id api.SandboxID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.made[id]
}

// fresh returns a sandbox that the node has begun to make since the last forget.
func (e *events) fresh() (api.SandboxID, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.made {
		if !e.old[id] {
			return id, nil
		}
	}
	return "", errors.New("none has begun")
}

// forget has fresh look away from all that has begun so far.
func (e *events) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.made {
		e.old[id] = true
	}
}

func (e *events) ranTimes(id api.SandboxID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ran[id]
}

// closed reports whether nobody listens at the URL any more.
func closed(address string) bool {
	host := strings.TrimPrefix(address, "http://")
	host, _, _ = strings.Cut(host, "/")
	conn, err := net.DialTimeout("tcp", host, time.Second)
	if err != nil {
		return true
	}
	_ = conn.Close()
	return false
}
