// Package servers tests three control servers, as programs, with mutual TLS between them and one node that speaks the real protocol: that any of
// them takes any request, and that nothing is lost or done twice while they are killed and restarted under load.
//
// It owns the programs that its tests start.
package servers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { binaries.Main(m) }

// cluster is three servers and a node.
type cluster struct {
	dir     string
	ca      keys.Issuer
	node    *fleettest.Node
	servers []*server
	key     string
	kept    []*server // that the load asks, where servers come and go; nil: all
}

// server is one of them.
type server struct {
	name   string
	dir    string
	listen string
	raft   string       // where the others reach it
	arm    string       // file that arms the step at which it is killed; empty: it is as it is released
	net    *island      // where it runs; nil: in the test's own network
	http   *http.Client // that reaches it
	mu     sync.Mutex   // guards what follows
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
}

func start(t *testing.T) *cluster {
	t.Helper()
	return startWith(t, nil, false)
}

// startWith starts each server on an island of its own; nil: all in the test's network. Those that may be killed can be armed for a step.
func startWith(t *testing.T, sea *sea, killed bool) *cluster {
	t.Helper()
	c := newCluster(t)
	var peers strings.Builder
	for i, name := range []string{"a", "b", "c"} {
		s := &server{name: name, dir: filepath.Join(c.dir, name), http: http.DefaultClient}
		if killed {
			s.arm = s.dir + ".step"
		}
		if sea == nil {
			s.listen, s.raft = agenttest.Address(t), agenttest.Address(t)
		} else {
			s.net = sea.islands[i]
			s.listen, s.raft, s.http = "127.0.0.1:7300", s.net.addr+":7301", s.net.client()
		}
		fmt.Fprintf(&peers, "  peer %q { address = %q }\n", name, s.raft)
		c.servers = append(c.servers, s)
	}
	for _, s := range c.servers {
		c.configure(t, s, keys.Server(s.name), peers.String(), "")
	}
	for _, s := range c.servers {
		s.start(t)
	}
	c.ready(t)
	c.firstKey(t)
	return c
}

// newCluster is one without servers.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), node: fleettest.New(t)}
	c.node.Self(func(n *nodeapi.Node) { n.MaxSandbox = 100_000 })
	ca, err := local.Open(filepath.Join(c.dir, "ca"))
	must.NoError(t, err)
	c.ca = ca
	return c
}

// configure writes a server's certificate, of whom as says, and its configuration: what goes into its block raft, and what follows that.
func (c *cluster) configure(t *testing.T, s *server, as keys.Identity, raft, more string) {
	t.Helper()
	cert, err := c.ca.Issue(t.Context(), keys.Request{Identity: as})
	must.NoError(t, err)
	must.NoError(t, os.MkdirAll(s.dir, 0o700))
	must.NoError(t, keys.WriteFiles(s.dir, cert))
	config := fmt.Sprintf("listen = %q\ndata_dir = %q\nnode \"here\" {\n  socket = %q\n}\nnode_tls {\n  ca_file = %q\n  cert_file = %q\n  key_file = %q\n}\n"+
		"raft {\n  listen = %q\n  server_id = %q\n%s}\n%s", s.listen, s.dir, c.node.Socket,
		filepath.Join(s.dir, keys.CAFile), filepath.Join(s.dir, keys.CertFile), filepath.Join(s.dir, keys.KeyFile), s.raft, s.name, raft, more)
	must.NoError(t, os.WriteFile(s.config(), []byte(config), 0o600))
}

// firstKey waits until somebody has made the first key, it is known, and the node is there.
func (c *cluster) firstKey(t *testing.T) {
	t.Helper()
	poll(t, "the first key", func() error {
		for _, s := range c.servers {
			b, err := os.ReadFile(filepath.Join(s.dir, "bootstrap-key"))
			if err != nil {
				continue
			}
			c.key = strings.TrimSpace(string(b))
			if _, err := c.client(t, c.servers[0]).ListSandboxes(t.Context(), api.ListOptions{}); err == nil {
				return nil
			}
		}
		return errors.New("no server has made it")
	})
	poll(t, "the node to be connected", func() error {
		nodes, err := c.client(t, c.servers[0]).Nodes(t.Context())
		if err == nil && len(nodes) == 0 {
			err = errors.New("no node")
		}
		return err
	})
}

func (s *server) config() string { return s.dir + ".hcl" }

func (s *server) start(t *testing.T) {
	t.Helper()
	path := binaries.Path
	if s.arm != "" {
		path = binaries.Killed
	}
	cmd, done := exec.Command(path(t, "soulbox"), "server", "-config", s.config()), make(chan struct{})
	if s.arm != "" {
		cmd.Env = append(os.Environ(), "SOULBOX_FAILPOINT="+s.arm)
	}
	log, err := os.OpenFile(s.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	must.NoError(t, s.net.do(cmd.Start))
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	go func() { defer close(done); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		<-done
		if b, _ := os.ReadFile(s.dir + ".log"); t.Failed() && cmd == s.running() {
			t.Logf("server %s:\n%s", s.name, b[max(0, len(b)-3000):])
		}
	})
}

// running is the process that was started last.
func (s *server) running() *exec.Cmd {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd
}

// ended is closed when that has ended.
func (s *server) ended() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// kill ends it as a crash would.
func (s *server) kill(t *testing.T) {
	t.Helper()
	must.NoError(t, s.running().Process.Kill())
	<-s.ended()
}

// stop ends it as an operator would.
func (s *server) stop(t *testing.T) {
	t.Helper()
	must.NoError(t, s.running().Process.Signal(os.Interrupt))
	<-s.ended()
}

func (c *cluster) client(t *testing.T, s *server) *api.Client {
	t.Helper()
	client, err := api.New(api.Config{Address: "http://" + s.listen, APIKey: c.key, HTTPClient: s.http})
	must.NoError(t, err)
	return client
}

// ready waits until all servers serve.
func (c *cluster) ready(t *testing.T) {
	t.Helper()
	for _, s := range c.servers {
		poll(t, "server "+s.name, func() error {
			select {
			case <-s.ended():
				b, _ := os.ReadFile(s.dir + ".log")
				t.Fatalf("server %s ended:\n%s", s.name, b)
			default:
			}
			_, err := c.ask(s, "GET", "/v1/health")
			return err
		})
	}
}

// leader returns the one that leads: the only one that has no age.
func (c *cluster) leader(t *testing.T) (lead *server) {
	t.Helper()
	poll(t, "a leader", func() error {
		for _, s := range c.servers {
			if h, err := c.ask(s, "GET", "/v2/sandboxes?stale"); err == nil && h.Get(api.AgeHeader) == "0" {
				lead = s
				return nil
			}
		}
		return errors.New("none")
	})
	return lead
}

// ask makes a plain request and returns the header of the answer.
func (c *cluster) ask(s *server, method, path string) (http.Header, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.listen+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-API-Key", c.key)
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return res.Header, errors.New(res.Status)
	}
	return res.Header, nil
}

// poll waits until check has no error. The bound is for a test that hangs, not for speed.
func poll(t *testing.T, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("wait for %s: %v", what, err)
		}
	}
}
