// Package drain tests what happens to sandboxes when their node is to be left, or dies: two Nomad clients with a node daemon each, which share a
// snapshot store, a Nomad server, Consul, and the control service as a program of its own.
//
// It owns the processes that its tests start and the folders in which they keep everything, and checks that nothing is left on the host.
package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/e2e/host"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func TestMain(m *testing.M) { binaries.Main(m) }

const (
	// idBase is the first host id of these tests' sandboxes, beside those of other tests and of a real node; idsEach is what a node has.
	idBase  = 1 << 29
	idsEach = 1 << 26
)

// cluster is the control service on two machines, as far as one machine can be two.
type cluster struct {
	t       *testing.T
	dir     string
	consul  *agent.Consul
	nomad   *agent.Nomad
	ca      *local.CA
	nodes   [2]*machine
	control *agent.Process
	address string // of the API and the edge, host:port
	key     string
	client  *api.Client
	arm     string // file that arms the step at which the control service is killed; empty: it is as it is released
}

// machine is a node daemon and the Nomad client that places on it.
type machine struct {
	c      *cluster
	name   string
	id     api.NodeID
	dir    string
	port   int
	store  string // of the daemon's configuration: where snapshots are
	daemon *agent.Process
	nomad  *agent.Nomad // with the client; its server is the cluster's
	client *nodeapi.Client
}

// start runs everything, with the template base on both nodes. store is the part of the nodes' configuration that names the snapshot store; a
// folder that they share where it is empty.
func start(t *testing.T, store string) *cluster {
	t.Helper()
	return startWith(t, store, false)
}

func startWith(t *testing.T, store string, killed bool) *cluster {
	t.Helper()
	sandboxtest.RequireRoot(t)
	sandboxtest.CRIU(t)
	// The path of a unix socket has to be short: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbdr")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	c := &cluster{t: t, dir: dir}
	if killed {
		c.arm = filepath.Join(dir, "step")
	}
	if store == "" {
		store = fmt.Sprintf("snapshot_dir = %q\nsnapshot_key = %q", filepath.Join(dir, "snapshots"), filepath.Join(dir, "snapshot.key"))
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, log := range c.logs() {
				b, _ := os.ReadFile(log)
				t.Logf("end of %s:\n%s", log, b[max(0, len(b)-2<<10):])
			}
		}
	})
	c.consul = agenttest.Consul(t, agent.ConsulConfig{Dir: filepath.Join(dir, "consul")})
	c.ca, err = local.Open(filepath.Join(dir, "ca"))
	must.NoError(t, err)
	for i, name := range []string{"a", "b"} {
		c.addMachine(i, name, store)
	}
	c.startControl()
	c.importBase()
	return c
}

func (c *cluster) logs() []string {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	more, _ := filepath.Glob(filepath.Join(c.dir, "*", "node.log"))
	return append(append(logs, more...), filepath.Join(c.dir, "a", "nomad", "client", "nomad.log"))
}

func (c *cluster) addMachine(i int, name, store string) {
	c.t.Helper()
	m := &machine{c: c, name: name, id: newNodeID(i), dir: filepath.Join(c.dir, name), store: store}
	c.nodes[i] = m
	must.NoError(c.t, os.MkdirAll(filepath.Join(m.dir, "plugins"), 0o700))
	m.port = agenttest.Ports(c.t, 1)[0]
	cert, err := c.ca.Issue(c.t.Context(), keys.Request{Identity: keys.Node(m.id), IPs: []net.IP{net.ParseIP(agent.Loopback)}})
	must.NoError(c.t, err)
	must.NoError(c.t, keys.WriteFiles(filepath.Join(m.dir, "tls"), cert))
	m.client = nodeapi.NewUnix(m.socket())
	c.t.Cleanup(m.client.Close)
	c.t.Cleanup(func() { m.host().NothingLeftOfNode(c.t) })
	m.startDaemon(i)
	c.t.Cleanup(func() { must.NoError(c.t, m.daemon.Stop(context.WithoutCancel(c.t.Context()))) })

	must.NoError(c.t, os.Symlink(binaries.Path(c.t, "nomad-driver-soulbox"), filepath.Join(m.dir, "plugins", "nomad-driver-soulbox")))
	cfg := agent.NomadConfig{
		Binary: agenttest.Binary(c.t, "nomad"), Dir: filepath.Join(m.dir, "nomad"), NodeID: string(m.id), PluginDir: filepath.Join(m.dir, "plugins"), MemoryMB: 4096,
		Plugins: []agent.NomadPlugin{{Name: "nomad-driver-soulbox", Config: map[string]any{"socket": m.socket(), "start_node": false}}},
	}
	if i > 0 {
		cfg.HTTP, cfg.RPC, cfg.Serf = c.nomad.Config.HTTP, c.nomad.Config.RPC, c.nomad.Config.Serf
	}
	m.nomad, err = agent.NewNomad(cfg)
	must.NoError(c.t, err)
	c.t.Cleanup(func() { must.NoError(c.t, m.nomad.Stop(context.WithoutCancel(c.t.Context()))) })
	if i == 0 {
		c.nomad = m.nomad
		must.NoError(c.t, c.nomad.StartServer(c.t.Context()))
	}
	must.NoError(c.t, m.nomad.StartClient(c.t.Context()))
}

func (m *machine) socket() string { return filepath.Join(m.dir, "run", "node.sock") }

func (m *machine) host() host.Node {
	return host.Node{StateDir: filepath.Join(m.dir, "state"), RunDir: filepath.Join(m.dir, "run"), CgroupParent: filepath.Base(m.c.dir) + "-" + m.name}
}

func (m *machine) startDaemon(i int) {
	t := m.c.t
	t.Helper()
	tls := func(name string) string { return filepath.Join(m.dir, "tls", name) }
	path := filepath.Join(m.dir, "node.hcl")
	if m.daemon == nil {
		must.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `node_id       = %q
node_name     = %q
state_dir     = %q
run_dir       = %q
address       = "127.0.0.1:%d"
init_path     = %q
criu_path     = %q
cgroup_parent = %q
id_range_base = %d
%s
tls {
  ca_file      = %q
  cert_file    = %q
  key_file     = %q
  client_names = [%q]
}
consul {
  address = %q
}
network {
  mode  = "on"
  ahead = 2
}
`, m.id, m.name, m.host().StateDir, m.host().RunDir, m.port, binaries.Path(t, "soulbox-init"), sandboxtest.CRIU(t), m.host().CgroupParent, idBase+i*idsEach,
			m.store, tls(keys.CAFile), tls(keys.CertFile), tls(keys.KeyFile), keys.RoleServer.DNSName(), m.c.consul.Config.Address()), 0o600))
	}
	var err error
	m.daemon, err = agent.Start(t.Context(), agent.Spec{
		Name: "node " + m.name, Path: binaries.Path(t, "nomad-driver-soulbox"), Args: []string{"node", "-config", path}, Dir: m.dir,
		Log: filepath.Join(m.dir, "node.log"),
		Ready: func(ctx context.Context) error {
			_, err := m.client.Node(ctx)
			return err
		},
	})
	must.NoError(t, err)
}

// die is what the loss of a machine is: the daemon and Nomad's client are gone, and so is what ran.
func (m *machine) die() {
	m.c.t.Helper()
	for _, p := range []*agent.Process{m.nomad.Client, m.daemon} {
		must.NoError(m.c.t, p.Signal(syscall.SIGKILL))
		<-p.Done()
	}
}

// comeBack starts the machine again, with what was on its disk.
func (m *machine) comeBack() {
	m.c.t.Helper()
	m.startDaemon(0)
	must.NoError(m.c.t, m.nomad.StartClient(m.c.t.Context()))
}

func newNodeID(i int) api.NodeID {
	return api.NodeID(fmt.Sprintf("d0000000-0000-4000-8000-%06x%06x", os.Getpid()&0xffffff, i+1))
}

// startControl runs `soulbox server`.
func (c *cluster) startControl() {
	t := c.t
	t.Helper()
	ports := agenttest.Ports(t, 1)
	c.address = agent.Address(ports[0])
	cert, err := c.ca.Issue(t.Context(), keys.Request{Identity: keys.Server("drain")})
	must.NoError(t, err)
	must.NoError(t, keys.WriteFiles(filepath.Join(c.dir, "server-tls"), cert))
	tls := func(name string) string { return filepath.Join(c.dir, "server-tls", name) }
	must.NoError(t, os.WriteFile(filepath.Join(c.dir, "server.hcl"), fmt.Appendf(nil, `listen   = %q
data_dir = %q
nomad {
  address = %q
}
consul {
  address = %q
}
node_tls {
  ca_file   = %q
  cert_file = %q
  key_file  = %q
}
`, c.address, filepath.Join(c.dir, "server"), c.nomad.Config.Address(), c.consul.Config.Address(), tls(keys.CAFile), tls(keys.CertFile), tls(keys.KeyFile)), 0o600))
	c.runControl()
	t.Cleanup(func() {
		if c.client != nil {
			c.endAll()
			c.client.Close()
		}
		must.NoError(t, c.control.Stop(context.WithoutCancel(t.Context())))
	})
	key, err := os.ReadFile(filepath.Join(c.dir, "server", "bootstrap-key"))
	must.NoError(t, err)
	c.key = strings.TrimSpace(string(key))
	c.client, err = api.New(api.Config{Address: "http://" + c.address, APIKey: c.key})
	must.NoError(t, err)
	c.until("both nodes to be connected", func() error {
		nodes, err := c.client.Nodes(t.Context())
		if err != nil {
			return err
		}
		connected := 0
		for _, n := range nodes {
			if n.Connected {
				connected++
			}
		}
		if connected != 2 {
			return fmt.Errorf("%+v", nodes)
		}
		return nil
	})
}

func (c *cluster) runControl() {
	c.t.Helper()
	probe, err := api.New(api.Config{Address: "http://" + c.address})
	must.NoError(c.t, err)
	defer probe.Close()
	path, env := "", []string(nil)
	if c.arm == "" {
		path = binaries.Path(c.t, "soulbox")
	} else {
		path, env = binaries.Killed(c.t, "soulbox"), []string{"SOULBOX_FAILPOINT=" + c.arm}
	}
	c.control, err = agent.Start(c.t.Context(), agent.Spec{
		Name: "soulbox server", Path: path, Env: env, Args: []string{"server", "-config", filepath.Join(c.dir, "server.hcl")},
		Dir: c.dir, Log: filepath.Join(c.dir, "server.log"),
		Ready: func(ctx context.Context) error {
			_, err := probe.Health(ctx)
			return err
		},
	})
	must.NoError(c.t, err)
}

// importBase puts the template base on both nodes.
func (c *cluster) importBase() {
	c.t.Helper()
	path, err := base.Build(c.t.Context(), base.Options{})
	must.NoError(c.t, err)
	tar, err := os.Open(path)
	must.NoError(c.t, err)
	defer tar.Close()
	_, err = c.client.ImportTemplate(c.t.Context(), "base", tar, api.ImportOptions{Source: "the test's own"})
	must.NoError(c.t, err)
	for _, m := range c.nodes {
		c.until("the template on node "+m.name, func() error {
			n, err := m.client.Node(c.t.Context())
			if err == nil && len(n.Templates) == 0 {
				err = fmt.Errorf("it has none")
			}
			return err
		})
	}
}

// endAll deletes what a test has left, and waits until the nodes have nothing of it.
func (c *cluster) endAll() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), time.Minute)
	defer cancel()
	for sb, err := range c.client.AllSandboxes(ctx, api.ListOptions{}) {
		if err != nil {
			c.t.Errorf("list at the end of the test: %v", err)
			return
		}
		if err := c.client.DeleteSandbox(ctx, sb.ID); err != nil && !api.IsNotFound(err) {
			c.t.Errorf("delete %s: %v", sb.ID, err)
		}
	}
	for _, m := range c.nodes {
		agenttest.Eventually(c.t, time.Minute, func() error {
			all, err := m.client.List(ctx)
			for _, sb := range all {
				if sb.State != nodeapi.StateStopped {
					err = fmt.Errorf("node %s has %s, which is %s", m.name, sb.ID, sb.State)
				}
			}
			return err
		})
	}
}

func (c *cluster) until(what string, check func() error) {
	c.t.Helper()
	agenttest.Eventually(c.t, 2*time.Minute, func() error {
		if err := check(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// run calls the real command line of Nomad.
func (c *cluster) run(args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), agenttest.Binary(c.t, "nomad"), args...)
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+c.nomad.Config.Address(), "NOMAD_CLI_NO_COLOR=1")
	out, err := cmd.CombinedOutput()
	c.t.Logf("$ nomad %s\n%s", strings.Join(args, " "), out)
	must.NoError(c.t, err)
	return string(out)
}

// only lets Nomad place on one node alone, or, for nil, on both.
func (c *cluster) only(m *machine) {
	c.t.Helper()
	for _, n := range c.nodes {
		flag := "-enable"
		if m != nil && n != m {
			flag = "-disable"
		}
		c.run("node", "eligibility", flag, string(n.id))
	}
}

// allocs counts what Nomad has on a node that has not ended.
func (c *cluster) allocs(m *machine) int {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), agenttest.Binary(c.t, "nomad"), "operator", "api", "/v1/node/"+string(m.id)+"/allocations")
	cmd.Env = append(os.Environ(), "NOMAD_ADDR="+c.nomad.Config.Address())
	out, err := cmd.Output()
	must.NoError(c.t, err)
	var all []struct{ ClientStatus string }
	must.NoError(c.t, json.Unmarshal(out, &all))
	n := 0
	for _, a := range all {
		if a.ClientStatus == "running" || a.ClientStatus == "pending" {
			n++
		}
	}
	return n
}

// on says where a sandbox is by the API.
func (c *cluster) get(id api.SandboxID) api.Sandbox {
	c.t.Helper()
	sb, err := c.client.GetSandbox(c.t.Context(), id)
	must.NoError(c.t, err)
	return sb
}
