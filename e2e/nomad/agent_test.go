package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/e2e/host"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

// agent is a real Nomad: a server, and a client with the driver as its plugin, whose agent is the one that tests end and start again. They are two
// processes since an agent that is both fails the allocations it comes back to, where its client asks its server before that has read its state
// ("pre-run hook \"group_services\" failed: rpc error: Permission denied").
type agent struct {
	dir    string
	http   string
	api    *nomadapi.Client
	socket string // of the node daemon that the plugin starts
	machine

	cmd  *exec.Cmd // the client's
	done chan struct{}

	endServer func()
}

// machine is where an agent runs. The zero machine is this one.
type machine struct {
	netns    *os.File // its network namespace
	client   string   // of the agent's client block
	plugins  string   // blocks of further drivers
	drivers  string   // that are allowed besides this one, each after a comma
	nodeArgs []string
}

// in runs do where the machine's network is.
func (m machine) in(do func() error) error {
	if m.netns == nil {
		return do()
	}
	return networktest.In(m.netns, do)
}

// dial connects as a program of the machine.
func (m machine) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = m.in(func() error { c, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
	return c, err
}

// startAgent runs Nomad with the plugin and waits until the driver is healthy and the template base is on the node.
func startAgent(t *testing.T) *agent {
	t.Helper()
	return startAgentOn(t, machine{})
}

func startAgentOn(t *testing.T, m machine) *agent {
	t.Helper()
	// Unix sockets must fit into 107 bytes: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbe2e")
	must.NoError(t, err)
	a := &agent{dir: dir, socket: filepath.Join(dir, "run", "node.sock"), machine: m}
	ports := agenttest.Ports(t, 4)
	a.http = fmt.Sprintf("127.0.0.1:%d", ports[0])
	for _, sub := range []string{"plugins", "run", "data", "server", "node"} {
		must.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	must.NoError(t, os.Symlink(binary(t, "nomad-driver-soulbox"), filepath.Join(dir, "plugins", "nomad-driver-soulbox")))
	server := fmt.Sprintf("127.0.0.1:%d", ports[1])
	must.NoError(t, os.WriteFile(filepath.Join(dir, "client.hcl"), []byte(a.clientConfig(t, ports[0], server)), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "server.hcl"), []byte(a.serverConfig(ports[1:])), 0o600))
	a.api = m.nomad(t, a.http)
	cmd, done := a.run(t, "server")
	a.endServer = sync.OnceFunc(func() { end(cmd, done) })
	t.Cleanup(a.endServer) // where the test fails before the next clean-up is there
	status := m.nomad(t, fmt.Sprintf("127.0.0.1:%d", ports[3])).Status()
	poll(t, "the server to lead", func() error {
		leader, err := status.Leader()
		if err == nil && leader == "" {
			err = errors.New("there is no leader")
		}
		return err
	})
	a.start(t) // a client that asks before it leads asks again after 15 seconds
	t.Cleanup(func() { a.stop(t) })
	a.waitDriver(t)
	a.importBase(t)
	return a
}

// nomad speaks with the agent at an address of the machine.
func (m machine) nomad(t *testing.T, address string) *nomadapi.Client {
	t.Helper()
	config := &nomadapi.Config{Address: "http://" + address}
	if m.netns != nil {
		transport := &http.Transport{DialContext: m.dial}
		t.Cleanup(transport.CloseIdleConnections)
		config.HttpClient = &http.Client{Transport: transport}
	}
	c, err := nomadapi.NewClient(config)
	must.NoError(t, err)
	return c
}

func (a *agent) serverConfig(ports []int) string {
	return fmt.Sprintf(`
data_dir  = %q
bind_addr = "127.0.0.1"
disable_update_check = true
log_level = "INFO"
ports {
  rpc  = %d
  serf = %d
  http = %d
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
server {
  enabled          = true
  bootstrap_expect = 1
}
`, filepath.Join(a.dir, "server"), ports[0], ports[1], ports[2])
}

func (a *agent) clientConfig(t *testing.T, port int, server string) string {
	t.Helper()
	nodeArgs, err := json.Marshal(append([]string{
		"-state-dir", filepath.Join(a.dir, "node"), "-run-dir", filepath.Join(a.dir, "run"), "-init", binary(t, "soulbox-init"),
		"-cgroup-parent", filepath.Base(a.dir), "-id-range-base", strconv.Itoa(1 << 29),
	}, a.nodeArgs...))
	must.NoError(t, err)
	return fmt.Sprintf(`
data_dir   = %q
plugin_dir = %q
bind_addr  = "127.0.0.1"
disable_update_check = true
log_level  = "INFO"
ports {
  http = %d
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
telemetry {
  publish_allocation_metrics = true # without it Nomad asks no driver for statistics
}
client {
  enabled = true
  servers = [%q]
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "soulbox%s"
  }
%s
}
%s
plugin "nomad-driver-soulbox" {
  config {
    socket    = %q
    node_log  = %q
    node_args = %s
  }
}
`, filepath.Join(a.dir, "data"), filepath.Join(a.dir, "plugins"), port, server,
		a.drivers, a.client, a.plugins, a.socket, filepath.Join(a.dir, "node.log"), nodeArgs)
}

// host is what the node may leave behind.
func (a *agent) host() host.Node {
	return host.Node{StateDir: filepath.Join(a.dir, "node"), RunDir: filepath.Join(a.dir, "run"), CgroupParent: filepath.Base(a.dir)}
}

// importBase puts the template base into the node's store.
func (a *agent) importBase(t *testing.T) {
	t.Helper()
	tar, err := base.Build(t.Context(), base.Options{})
	must.NoError(t, err)
	f, err := os.Open(tar)
	must.NoError(t, err)
	defer f.Close()
	_, err = nodeapi.NewUnix(a.socket).ImportTemplate(t.Context(), "base", f)
	must.NoError(t, err)
}

// binary returns the path of one of our programs, or of Nomad.
func binary(t *testing.T, name string) string {
	t.Helper()
	if name == "nomad" {
		path, err := stack.Find(name)
		must.NoError(t, err)
		return path
	}
	return binaries.Path(t, name)
}

// start launches the client's agent, again after a kill.
func (a *agent) start(t *testing.T) {
	t.Helper()
	a.cmd, a.done = a.run(t, "client")
}

// run starts the agent of a role. Done is closed when it has ended.
func (a *agent) run(t *testing.T, role string) (cmd *exec.Cmd, done chan struct{}) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(a.dir, role+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must.NoError(t, err)
	defer log.Close()
	cmd = exec.Command(binary(t, "nomad"), "agent", "-config", filepath.Join(a.dir, role+".hcl"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must.NoError(t, a.in(cmd.Start))
	done = make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	return cmd, done
}

// end asks an agent to end, and makes it where it does not.
func end(cmd *exec.Cmd, done chan struct{}) {
	_ = cmd.Process.Signal(os.Interrupt)
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
}

// kill ends the client's agent as a crash would.
func (a *agent) kill(t *testing.T) {
	t.Helper()
	must.NoError(t, a.cmd.Process.Kill())
	<-a.done
}

func (a *agent) stop(t *testing.T) {
	if t.Failed() {
		for _, log := range []string{"server.log", "client.log", "node.log"} {
			b, _ := os.ReadFile(filepath.Join(a.dir, log))
			t.Logf("%s, what went wrong:\n%s", log, tail(failures(string(b)), 6000))
			t.Logf("%s:\n%s", log, tail(string(b), 6000))
		}
	}
	a.endJobs(t)
	end(a.cmd, a.done)
	a.endServer()
	a.stopNode(t)
	a.unmountSecrets(t)
	if err := os.RemoveAll(a.dir); err != nil {
		t.Errorf("remove the agent's folder: %v", err)
	}
}

// endJobs stops what a test that failed has left running: an agent that ends leaves its tasks and their log collectors.
func (a *agent) endJobs(t *testing.T) {
	if !t.Failed() {
		return
	}
	jobs, _, err := a.api.Jobs().List(nil)
	if err != nil {
		t.Errorf("jobs at the end of the test: %v", err)
		return
	}
	for _, j := range jobs {
		if _, _, err := a.api.Jobs().Deregister(j.ID, false, nil); err != nil {
			t.Errorf("stop job %s: %v", j.ID, err)
		}
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		allocs, _, err := a.api.Allocations().List(nil)
		if err != nil {
			t.Errorf("allocations at the end of the test: %v", err)
			return
		}
		running := 0
		for _, al := range allocs {
			if al.ClientStatus == "running" || al.ClientStatus == "pending" {
				running++
			}
		}
		if running == 0 {
			return
		}
	}
}

// unmountSecrets takes away what an agent leaves of allocations that it has not collected: a file system in memory each.
func (a *agent) unmountSecrets(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Errorf("mounts at the end of the test: %v", err)
		return
	}
	for line := range strings.Lines(string(mounts)) {
		path := strings.Fields(line)[4]
		if !strings.HasPrefix(path, filepath.Join(a.dir, "data")+"/") {
			continue
		}
		if err := syscall.Unmount(path, 0); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	}
}

// stopNode ends what is left of the node: its sandboxes, then the daemon, which nobody else would end.
func (a *agent) stopNode(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := nodeapi.NewUnix(a.socket)
	node, err := client.Node(ctx)
	if err != nil {
		t.Errorf("node daemon at the end of the test: %v", err)
		return
	}
	all, err := client.List(ctx)
	if err != nil {
		t.Errorf("list at the end of the test: %v", err)
	}
	for _, sb := range all {
		_, err := client.Stop(ctx, sb.ID, nodeapi.StopRequest{})
		if err := client.Delete(ctx, sb.ID); err != nil {
			t.Errorf("delete %s: %v", sb.ID, err)
		}
		_ = err // it may have ended by itself
	}
	if err := syscall.Kill(node.PID, syscall.SIGTERM); err != nil {
		t.Errorf("stop the node daemon: %v", err)
	}
	poll(t, "the node daemon to end", func() error {
		if err := syscall.Kill(node.PID, 0); err == nil {
			if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", node.PID)); err == nil && !strings.Contains(string(stat), ") Z ") {
				return fmt.Errorf("process %d is there", node.PID)
			}
		}
		return nil
	})
}

func (a *agent) waitDriver(t *testing.T) {
	t.Helper()
	poll(t, "the driver to be healthy", func() error {
		nodes, _, err := a.api.Nodes().List(nil)
		if err != nil {
			return err
		}
		if len(nodes) != 1 || nodes[0].Status != "ready" {
			return fmt.Errorf("nodes: %+v", nodes)
		}
		d := nodes[0].Drivers["soulbox"]
		if d == nil || !d.Healthy {
			return fmt.Errorf("driver: %+v", d)
		}
		return nil
	})
}

// cli runs the real nomad command line and returns what it printed.
func (a *agent) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := a.tryCLI(t, args...)
	if err != nil {
		t.Fatalf("nomad %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (a *agent) tryCLI(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := a.command(t, args...)
	var b []byte
	err := a.in(func() (err error) { b, err = cmd.CombinedOutput(); return err })
	return string(b), err
}

func (a *agent) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary(t, "nomad"), args...)
	cmd.Env = append(os.Environ(), "NOMAD_ADDR=http://"+a.http, "NOMAD_CLI_NO_COLOR=1")
	return cmd
}

// alloc returns the one allocation of a job that is in the wanted client status.
func (a *agent) alloc(t *testing.T, job, status string) *nomadapi.Allocation {
	t.Helper()
	var id string
	poll(t, "an allocation of "+job+" that is "+status, func() error {
		allocs, _, err := a.api.Jobs().Allocations(job, true, nil)
		if err != nil {
			return err
		}
		for _, al := range allocs {
			if al.ClientStatus == status {
				id = al.ID
				return nil
			}
		}
		return fmt.Errorf("allocations: %s", describe(allocs))
	})
	al, _, err := a.api.Allocations().Info(id, nil)
	must.NoError(t, err)
	return al
}

func describe(allocs []*nomadapi.AllocationListStub) string {
	var s []string
	for _, al := range allocs {
		for name, state := range al.TaskStates {
			s = append(s, fmt.Sprintf("%s %s/%s: %s", al.ClientStatus, al.ID[:8], name, events(state)))
		}
	}
	return strings.Join(s, "; ")
}

func events(state *nomadapi.TaskState) string {
	var s []string
	for _, e := range state.Events {
		s = append(s, e.Type+": "+e.DisplayMessage+" oom_killed="+e.Details["oom_killed"])
	}
	return strings.Join(s, " | ")
}

// poll waits until check has no error. The bound is for a test that hangs, not for speed.
func poll(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// failures are the lines of a log that tell of one.
func failures(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "[ERROR]") || strings.Contains(line, "[WARN]") || strings.Contains(line, "failed=true") {
			b.WriteString(line)
		}
	}
	return b.String()
}
