package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/rebalance"
	"github.com/soulbox-dev/soulbox/control/state"
)

func noEnv(string) string { return "" }

func parse(t *testing.T, text string) File {
	t.Helper()
	f, err := Parse([]byte(text), "server.hcl")
	must.NoError(t, err)
	return f.WithDefaults()
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestFile_everything(t *testing.T) {
	f := parse(t, `
listen    = "0.0.0.0:7300"
data_dir  = "/data"
log_level = "debug"
log_json  = true

max_lifetime    = "24h"
default_timeout = "5m"
retention       = "1h"

tls {
  cert_file = "/c"
  key_file  = "/k"
}
raft {
  listen    = "10.0.0.1:7301"
  server_id = "a"
  peer "a" { address = "10.0.0.1:7301" }
  peer "b" { address = "10.0.0.2:7301" }
  retry_join = ["10.0.0.3:7301"]
  join {
    consul { service = "servers" }
  }
}
autopilot {
  cleanup_dead_servers = false
  dead_server_last_contact_threshold = "1h"
  max_trailing_logs = 5
}
nomad {
  address      = "https://nomad:4646"
  token_file   = "/token"
  namespace    = "sandboxes"
  datacenters  = ["dc1"]
  mhz_per_core = 500
}
consul { address = "127.0.0.1:8500" }
rebalance {
  every   = "10m"
  moves   = 4
  at_once = 2
  hours   = "22:00-06:30"
  classes = ["best_effort"]
}
vault  { address = "https://vault:8200" }
`)
	must.NoError(t, f.Check())
	must.Eq(t, "10.0.0.2:7301", f.Raft.Peers[1].Address)
	must.SliceEmpty(t, f.Nodes)
	pilot, err := f.Autopilot.settings()
	must.NoError(t, err)
	want := state.DefaultAutopilot()
	want.CleanupDeadServers, want.DeadAfter, want.MaxTrailingLogs = false, time.Hour, 5
	must.Eq(t, want, *pilot)
	cfg := Config{Config: core.Config{Logger: hclog.NewNullLogger()}}
	must.NoError(t, f.raft(noEnv, &cfg))
	for _, c := range cfg.Closers {
		defer func() { must.NoError(t, c()) }()
	}
	addrs, err := cfg.Others(canceled(t))
	must.ErrorContains(t, err, "look for servers in consul")
	must.Eq(t, []string{"10.0.0.3:7301"}, addrs, must.Sprint("the list counts without Consul"))
	policy, err := f.Rebalance.policy()
	must.NoError(t, err)
	must.Eq(t, rebalance.Policy{
		Every: 10 * time.Minute, AtOnce: 2, From: 22 * time.Hour, To: 6*time.Hour + 30*time.Minute,
		Limits: rebalance.Limits{Moves: 4, Classes: []string{"best_effort"}},
	}, policy)
}

func TestFile_defaults(t *testing.T) {
	f := parse(t, "")
	must.NoError(t, f.Check())
	must.Eq(t, DefaultListen, f.Listen)
	must.Eq(t, DefaultDataDir, f.DataDir)
	must.Eq(t, []NodeBlock{{Name: "local", Socket: "/run/soulbox/node.sock"}}, f.Nodes)
}

func TestFile_checkNamesTheField(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"listen", `listen = "7300"`, "listen:"},
		{"data dir", `data_dir = "data"`, "data_dir:"},
		{"log level", `log_level = "loud"`, "log_level:"},
		{"lifetime", `max_lifetime = "long"`, "max_lifetime:"},
		{"negative timeout", `default_timeout = "-5m"`, "default_timeout:"},
		{"zero retention", `retention = "0s"`, "retention:"},
		{"raft beyond this machine", "raft {\n listen = \"0.0.0.0:1\"\n server_id = \"a\"\n}", "raft.listen:"},
		{"raft id", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a b\"\n}", "raft.server_id:"},
		{"raft without itself", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n peer \"b\" { address = \"127.0.0.1:2\" }\n}", "raft.peer:"},
		{"address to join", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n retry_join = [\"x\"]\n}", "raft.retry_join:"},
		{"join by nothing", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n join {}\n}", "raft.join:"},
		{"autopilot without raft", "autopilot {}", "autopilot:"},
		{"autopilot of no quorum", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n}\nautopilot { min_quorum = 1 }", "min_quorum"},
		{"autopilot's duration", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n}\nautopilot { last_contact_threshold = \"x\" }", "autopilot.last_contact_threshold"},
		{"peer's address", "raft {\n listen = \"127.0.0.1:1\"\n server_id = \"a\"\n peer \"a\" { address = \"x\" }\n}", "raft.peer.a.address:"},
		{"node without address", `node "x" {}`, "node.x:"},
		{"node with two", "node \"x\" {\n socket = \"/s\"\n address = \"a:1\"\n}", "node.x:"},
		{"node's socket", `node "x" { socket = "s" }`, "node.x.socket:"},
		{"node over TCP without certificates", `node "x" { address = "a:1" }`, "node.x.address:"},
		{"two nodes without nomad", "node \"x\" { socket = \"/s\" }\nnode \"y\" { socket = \"/t\" }", "node:"},
		{"nodes and consul", "nomad {}\nconsul {}\nnode \"x\" { socket = \"/s\" }", "node:"},
		{"consul without nomad", `consul {}`, "consul:"},
		{"vault and files", "vault {}\nnode_tls {\n ca_file = \"/a\"\n cert_file = \"/b\"\n key_file = \"/c\"\n}", "node_tls:"},
		{"key of links", `vault { link_key = "links" }`, "vault.link_key:"},
		{"key of snapshots", `vault { snapshot_key = "soulbox/creds/x" }`, "vault.snapshot_key:"},
		{"rebalance every", `rebalance { every = "often" }`, "rebalance.every:"},
		{"rebalance hours", "rebalance {\n every = \"5m\"\n hours = \"night\"\n}", "rebalance.hours:"},
		{"rebalance classes", "rebalance {\n every = \"5m\"\n classes = [\"all\"]\n}", "rebalance.classes:"},
		{"rebalance moves", "rebalance {\n every = \"5m\"\n at_once = 99\n}", "rebalance.at_once:"},
		{"nomad priority", `nomad { priority = 101 }`, "nomad.priority:"},
		{"nomad mhz", `nomad { mhz_per_core = -1 }`, "nomad.mhz_per_core:"},
		{"nomad certificate", `nomad { cert_file = "/c" }`, "nomad.cert_file:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			must.ErrorContains(t, parse(t, tc.text).Check(), tc.want)
		})
	}
	for _, bad := range []string{`lisen = "x"`, `tls {}`, `listen = file("/etc/passwd")`, `listen = "`} {
		_, err := Parse([]byte(bad), "server.hcl")
		must.ErrorContains(t, err, "server.hcl:1", must.Sprint(bad))
	}
}

// certificates makes a CA and returns it with the files of a server's certificate.
func certificates(t *testing.T) (ca *local.CA, dir string) {
	t.Helper()
	ca, err := local.Open(t.TempDir())
	must.NoError(t, err)
	cert, err := ca.Issue(t.Context(), keys.Request{Identity: keys.Server("a")})
	must.NoError(t, err)
	dir = t.TempDir()
	must.NoError(t, keys.WriteFiles(dir, cert))
	return ca, dir
}

func TestConfig_certificateOfFilesIsReadAgain(t *testing.T) {
	ca, dir := certificates(t)
	f := parse(t, `
data_dir = "`+t.TempDir()+`"
node "x" { address = "127.0.0.1:1" }
node_tls {
  ca_file   = "`+dir+`/ca.pem"
  cert_file = "`+dir+`/cert.pem"
  key_file  = "`+dir+`/key.pem"
}`)
	must.NoError(t, f.Check())
	cfg, err := f.Config(t.Context(), noEnv, hclog.NewNullLogger())
	must.NoError(t, err)
	defer func() {
		for _, c := range cfg.Closers {
			must.NoError(t, c())
		}
	}()
	conf, err := cfg.NodeTLS(health.Node{ID: "n"})
	must.NoError(t, err)
	serial := func() string {
		c, err := conf.GetClientCertificate(&tls.CertificateRequestInfo{})
		must.NoError(t, err)
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		must.NoError(t, err)
		return leaf.SerialNumber.String()
	}
	first := serial()
	next, err := ca.Issue(t.Context(), keys.Request{Identity: keys.Server("a")})
	must.NoError(t, err)
	must.NoError(t, keys.WriteFiles(dir, next))
	must.NotEq(t, first, serial())
	// Half of a renewal: what was good stays.
	second := serial()
	must.NoError(t, os.WriteFile(filepath.Join(dir, keys.KeyFile), []byte("half"), 0o600))
	must.Eq(t, second, serial())
}

func TestConfig_errorsNameTheField(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"no certificate", "tls {\n cert_file = \"/none\"\n key_file = \"/none\"\n}", "tls:"},
		{"no node certificate", "node_tls {\n ca_file = \"/none\"\n cert_file = \"/none\"\n key_file = \"/none\"\n}", "node_tls:"},
		{"no token", `nomad { token_file = "/none" }`, "nomad.token_file:"},
		{"no consul token", "nomad {}\nconsul { token_file = \"/none\" }", "consul.token_file:"},
		{"no vault", `vault { address = "http://127.0.0.1:1" }`, "vault:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := parse(t, tc.text).Config(t.Context(), noEnv, hclog.NewNullLogger())
			must.ErrorContains(t, err, tc.want)
		})
	}
}

// TestService_serves runs a server whose node is away: it answers all the same.
func TestService_serves(t *testing.T) {
	defer goleak.VerifyNone(t)
	_, dir := certificates(t)
	f := parse(t, `
listen   = "127.0.0.1:0"
data_dir = "`+t.TempDir()+`"
node "x" { socket = "/nonexistent/node.sock" }
tls {
  cert_file = "`+dir+`/cert.pem"
  key_file  = "`+dir+`/key.pem"
}`)
	must.NoError(t, f.Check())
	ctx, cancel := context.WithCancel(t.Context())
	cfg, err := f.Config(ctx, noEnv, hclog.NewNullLogger())
	must.NoError(t, err)
	s, err := Open(ctx, cfg)
	must.NoError(t, err)
	must.True(t, s.Core.Bootstrapped)
	key := s.Core.Bootstrap.Key()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()

	pem, err := os.ReadFile(filepath.Join(dir, keys.CAFile))
	must.NoError(t, err)
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM(pem))
	hc := httpClient(&tls.Config{RootCAs: roots, ServerName: keys.RoleServer.DNSName()})
	defer hc.CloseIdleConnections()
	c, err := api.New(api.Config{Address: s.Address(), APIKey: key, HTTPClient: hc})
	must.NoError(t, err)
	call, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	list, err := c.ListSandboxes(call, api.ListOptions{})
	must.NoError(t, err)
	must.SliceEmpty(t, list.Sandboxes)
	_, err = c.CreateSandbox(call, api.CreateRequest{Template: "base"})
	must.Error(t, err)
	c.Close()
	cancel()
	must.NoError(t, <-done)
}

func TestOpen_addressTaken(t *testing.T) {
	f := parse(t, `listen = "127.0.0.1:0"`)
	f.DataDir = t.TempDir()
	cfg, err := f.Config(t.Context(), noEnv, hclog.NewNullLogger())
	must.NoError(t, err)
	s, err := Open(t.Context(), cfg)
	must.NoError(t, err)
	second := cfg
	second.Listen = s.listener.Addr().String()
	closed := false
	second.Closers = []func() error{func() error { closed = true; return nil }}
	_, err = Open(t.Context(), second)
	must.ErrorContains(t, err, "address already in use")
	must.True(t, closed)
	must.NoError(t, s.Close())
}

func httpClient(cfg *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}}
}

// Whom the edge does not let in is in the audit log, and however often he knocks he does not fill it.
func TestService_recordsWhomTheEdgeRefuses(t *testing.T) {
	f := parse(t, `listen = "127.0.0.1:0"`)
	f.DataDir = t.TempDir()
	f.Nodes = []NodeBlock{{Name: "x", Socket: "/nonexistent/node.sock"}}
	ctx, cancel := context.WithCancel(t.Context())
	cfg, err := f.Config(ctx, noEnv, hclog.NewNullLogger())
	must.NoError(t, err)
	s, err := Open(ctx, cfg)
	must.NoError(t, err)
	key := s.Core.Bootstrap.Key()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		must.NoError(t, <-done)
	}()
	c, err := api.New(api.Config{Address: s.Address(), APIKey: key})
	must.NoError(t, err)
	defer c.Close()
	const times = 300
	for i := range times {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/files?path=/x&signature=v2.%d.x", s.Address(), i), nil)
		must.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, http.StatusForbidden, resp.StatusCode)
	}
	list, err := c.Audit(ctx, api.AuditOptions{Action: "sandbox.connect"})
	must.NoError(t, err)
	must.Len(t, 1, list.Events)
	e := list.Events[0]
	must.Eq(t, []string{"denied", "127.0.0.1", "edge", "link"}, []string{e.Result, e.Source, e.Details["via"], e.Details["why"]})
}
