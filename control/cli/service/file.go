package service

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/rebalance"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
)

// Defaults of a File.
const (
	DefaultListen  = "127.0.0.1:7300"
	DefaultDataDir = "/var/lib/soulbox/server"
)

// File is the configuration file of a server, in HCL. Every attribute is optional unless it says otherwise.
type File struct {
	Listen   string `hcl:"listen,optional"`    // host:port of the API
	DataDir  string `hcl:"data_dir,optional"`  // state and first key
	LogLevel string `hcl:"log_level,optional"` // trace, debug, info, warn, error
	LogJSON  bool   `hcl:"log_json,optional"`

	MaxLifetime    string `hcl:"max_lifetime,optional"`    // of a sandbox, such as "24h"
	DefaultTimeout string `hcl:"default_timeout,optional"` // of a sandbox
	Retention      string `hcl:"retention,optional"`       // of what is known of ended sandboxes

	// DefaultQuota is what tenants may use that have no limits of their own: { sandboxes = 100, cpu_millis = 64000 }.
	DefaultQuota map[string]int64 `hcl:"default_quota,optional"`

	// ImageRegistries are registries in the operator's own network that builds may pull images from, as host:port. Public ones need not
	// be named.
	ImageRegistries []string `hcl:"image_registries,optional"`

	Rebalance *RebalanceBlock `hcl:"rebalance,block"` // sandboxes are moved by themselves; without it when somebody says so

	Audit *AuditBlock `hcl:"audit,block"`
	TLS   *TLSBlock   `hcl:"tls,block"`  // of the API
	Raft  *RaftBlock  `hcl:"raft,block"` // where there are several servers
	// Autopilot says how the server that leads keeps the cluster of servers well. Only with raft.
	Autopilot *AutopilotBlock `hcl:"autopilot,block"`
	Nodes     []NodeBlock     `hcl:"node,block"`  // nodes by address; not with consul
	Nomad     *NomadBlock     `hcl:"nomad,block"` // places sandboxes; without it the one node is called directly
	Consul    *ConsulBlock    `hcl:"consul,block"`
	Vault     *VaultBlock     `hcl:"vault,block"`
	Auth      *AuthBlock      `hcl:"auth,block"`     // who callers are, beside API keys
	Client    *ClientBlock    `hcl:"node_tls,block"` // to nodes over TCP; not with vault
}

// RebalanceBlock says when the leader evens out the nodes by itself, and how far it may go.
type RebalanceBlock struct {
	Every   string   `hcl:"every"`             // between two plans, such as "10m"
	Moves   int      `hcl:"moves,optional"`    // of one plan, at most; 10
	AtOnce  int      `hcl:"at_once,optional"`  // moves at a time; 1
	MinGain float64  `hcl:"min_gain,optional"` // of one move, in percentage points; 1
	Hours   string   `hcl:"hours,optional"`    // in UTC, such as "22:00-06:00"; all day
	Classes []string `hcl:"classes,optional"`  // whose sandboxes may be moved; best_effort and burstable
}

// policy is what the block says.
func (r *RebalanceBlock) policy() (p rebalance.Policy, err error) {
	if r == nil {
		return p, nil
	}
	p = rebalance.Policy{AtOnce: r.AtOnce, Limits: rebalance.Limits{Moves: r.Moves, MinGain: r.MinGain, Classes: r.Classes}}
	if err := p.Limits.Check(); err != nil {
		return p, fmt.Errorf("rebalance.%w", err)
	}
	if r.AtOnce < 0 || r.AtOnce > rebalance.MaxAtOnce {
		return p, fmt.Errorf("rebalance.at_once: %d is not between 1 and %d", r.AtOnce, rebalance.MaxAtOnce)
	}
	if p.Every, err = time.ParseDuration(r.Every); err != nil || p.Every < time.Second {
		return p, fmt.Errorf("rebalance.every: %.40q is no duration of at least 1s", r.Every)
	}
	if r.Hours == "" {
		return p, nil
	}
	from, to, ok := strings.Cut(r.Hours, "-")
	for _, h := range []struct {
		text string
		to   *time.Duration
	}{{from, &p.From}, {to, &p.To}} {
		t, err := time.Parse("15:04", h.text)
		if err != nil || !ok {
			return p, fmt.Errorf("rebalance.hours: %.40q is not as in 22:00-06:00", r.Hours)
		}
		*h.to = time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
	}
	return p, nil
}

// TLSBlock names the files of the API's certificate.
type TLSBlock struct {
	CertFile string `hcl:"cert_file"`
	KeyFile  string `hcl:"key_file"`
}

// ClientBlock names the files of the certificate with which nodes are reached over TCP.
type ClientBlock struct {
	CAFile   string `hcl:"ca_file"`
	CertFile string `hcl:"cert_file"`
	KeyFile  string `hcl:"key_file"`
}

// RaftBlock describes the cluster of servers.
type RaftBlock struct {
	Listen    string      `hcl:"listen"` // host:port for the other servers
	Advertise string      `hcl:"advertise,optional"`
	ServerID  string      `hcl:"server_id"`
	Peers     []PeerBlock `hcl:"peer,block"` // all servers of a new cluster, this one included
	// RetryJoin are host:port of servers that let this one into their cluster, where it begins none by its own peers. It asks until one does.
	RetryJoin []string   `hcl:"retry_join,optional"`
	Join      *JoinBlock `hcl:"join,block"` // finds them
}

// JoinBlock says how the other servers are found.
type JoinBlock struct {
	Consul *JoinConsulBlock `hcl:"consul,block"`
}

// JoinConsulBlock says in which Consul the servers are, and that this one makes itself known there. What is missing is as in the block consul of the file.
type JoinConsulBlock struct {
	Address    string `hcl:"address,optional"`
	TokenFile  string `hcl:"token_file,optional"` // else the environment variable CONSUL_HTTP_TOKEN
	Datacenter string `hcl:"datacenter,optional"`
	Service    string `hcl:"service,optional"` // "soulbox-server"
}

// AutopilotBlock has the names of Vault's and Nomad's settings.
type AutopilotBlock struct {
	CleanupDeadServers   *bool   `hcl:"cleanup_dead_servers,optional"`               // true
	DeadAfter            string  `hcl:"dead_server_last_contact_threshold,optional"` // "24h"
	LastContactThreshold string  `hcl:"last_contact_threshold,optional"`             // "5s"
	MaxTrailingLogs      *uint64 `hcl:"max_trailing_logs,optional"`                  // 1000
	MinQuorum            *uint   `hcl:"min_quorum,optional"`                         // 3
	Stabilization        string  `hcl:"server_stabilization_time,optional"`          // "10s"
}

// settings is what the block says; nil: the default.
func (a *AutopilotBlock) settings() (*state.Autopilot, error) {
	if a == nil {
		return nil, nil
	}
	out := state.DefaultAutopilot()
	for _, d := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"dead_server_last_contact_threshold", a.DeadAfter, &out.DeadAfter}, {"last_contact_threshold", a.LastContactThreshold, &out.LastContact},
		{"server_stabilization_time", a.Stabilization, &out.Stabilization},
	} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return nil, fmt.Errorf("autopilot.%s: %.40q is no duration such as \"10s\"", d.name, d.text)
		}
		*d.to = v
	}
	if a.CleanupDeadServers != nil {
		out.CleanupDeadServers = *a.CleanupDeadServers
	}
	if a.MaxTrailingLogs != nil {
		out.MaxTrailingLogs = *a.MaxTrailingLogs
	}
	if a.MinQuorum != nil {
		out.MinQuorum = *a.MinQuorum
	}
	return &out, out.Check()
}

// PeerBlock is a server of the cluster.
type PeerBlock struct {
	ID      string `hcl:"id,label"`
	Address string `hcl:"address"`
}

// NodeBlock is a node that is known by its address.
type NodeBlock struct {
	Name    string `hcl:"name,label"`
	Socket  string `hcl:"socket,optional"`  // of a node on this machine
	Address string `hcl:"address,optional"` // host:port of one elsewhere
}

// NomadBlock says where Nomad is and how sandboxes are placed.
type NomadBlock struct {
	Address     string   `hcl:"address,optional"`
	TokenFile   string   `hcl:"token_file,optional"` // else the environment variable NOMAD_TOKEN
	Region      string   `hcl:"region,optional"`
	Namespace   string   `hcl:"namespace,optional"`
	NodePool    string   `hcl:"node_pool,optional"`
	Datacenters []string `hcl:"datacenters,optional"`
	JobPrefix   string   `hcl:"job_prefix,optional"`
	Priority    int      `hcl:"priority,optional"`
	MHzPerCore  int      `hcl:"mhz_per_core,optional"`
	CAFile      string   `hcl:"ca_file,optional"`
	CertFile    string   `hcl:"cert_file,optional"`
	KeyFile     string   `hcl:"key_file,optional"`
}

// ConsulBlock says where Consul is.
type ConsulBlock struct {
	Address    string `hcl:"address,optional"`
	TokenFile  string `hcl:"token_file,optional"` // else the environment variable CONSUL_HTTP_TOKEN
	Datacenter string `hcl:"datacenter,optional"`
	Service    string `hcl:"service,optional"`
}

// VaultBlock says where Vault is, which issues the certificates between servers and nodes.
type VaultBlock struct {
	Address   string `hcl:"address,optional"`
	TokenFile string `hcl:"token_file,optional"` // else the environment variable VAULT_TOKEN
	Namespace string `hcl:"namespace,optional"`
	Mount     string `hcl:"mount,optional"`   // of the PKI secrets engine
	CAFile    string `hcl:"ca_file,optional"` // of Vault's own API
	// Keys that are in Vault instead of on the servers' disks: "<mount>/url-keys/<name>", of SoulBox's secrets engine, or
	// "<mount>/keys/<name>", of transit. The token needs to read their export.
	LinkKey     string `hcl:"link_key,optional"`
	SnapshotKey string `hcl:"snapshot_key,optional"`
	SecretKey   string `hcl:"secret_key,optional"`
	// AuditKey signs the heads of the audit log: "<mount>/keys/<name>", a key of transit of type ed25519, which never leaves Vault. While
	// Vault cannot be asked, heads wait on disk for their signatures. Empty: a key in a file of the server's.
	AuditKey string `hcl:"audit_key,optional"`
}

const maxFile = 1 << 20 // bytes of a configuration file

// ReadFile reads the configuration file at path and checks it.
func ReadFile(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return File{}, fmt.Errorf("configuration: %w", err)
	}
	return Parse(src, path)
}

// Parse reads a configuration file's content. name is for errors.
func Parse(src []byte, name string) (File, error) {
	if len(src) > maxFile {
		return File{}, fmt.Errorf("configuration: %s is larger than %d bytes", name, maxFile)
	}
	var f File
	parsed, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if !diags.HasErrors() {
		diags = gohcl.DecodeBody(parsed.Body, nil, &f)
	}
	if diags.HasErrors() {
		return File{}, fmt.Errorf("configuration: %w", diags)
	}
	return f, nil
}

// WithDefaults returns f with what is missing filled in.
func (f File) WithDefaults() File {
	set(&f.Listen, DefaultListen)
	set(&f.DataDir, DefaultDataDir)
	set(&f.LogLevel, "info")
	if f.Consul == nil && len(f.Nodes) == 0 {
		f.Nodes = []NodeBlock{{Name: "local", Socket: filepath.Join(node.DefaultRunDir, "node.sock")}}
	}
	return f
}

func set(p *string, v string) {
	if *p == "" {
		*p = v
	}
}

// Check returns an error for each field that is wrong, by its name.
func (f File) Check() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("configuration: %s: %s", field, fmt.Sprintf(format, args...)))
	}
	hostPort := func(field, v string) {
		if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
			bad(field, "%.80q is not host:port", v)
		}
	}
	abs := func(field, v string) {
		if !filepath.IsAbs(v) {
			bad(field, "%.200q is not an absolute path", v)
		}
	}
	hostPort("listen", f.Listen)
	abs("data_dir", f.DataDir)
	if hclog.LevelFromString(f.LogLevel) == hclog.NoLevel {
		bad("log_level", "%.40q is none of trace, debug, info, warn, error", f.LogLevel)
	}
	for _, d := range f.durations(nil) {
		if d.text == "" {
			continue
		}
		if v, err := time.ParseDuration(d.text); err != nil || v <= 0 {
			bad(d.name, "%.40q is not a duration greater than zero, such as \"24h\"", d.text)
		}
	}
	for _, r := range f.ImageRegistries {
		hostPort("image_registries", r)
	}
	f.checkAudit(bad, abs)
	for name, v := range f.DefaultQuota {
		if _, ok := state.LimitOf(name); !ok || v < state.Unlimited || v > state.MaxLimit {
			bad("default_quota", "%.40q = %d is none of %s with a value from 0 on, or -1 for none", name, v, strings.Join(state.LimitNames(), ", "))
		}
	}
	f.checkNodes(bad, hostPort, abs)
	f.checkAuth(bad)
	if r := f.Raft; r != nil {
		hostPort("raft.listen", r.Listen)
		if r.Advertise != "" {
			hostPort("raft.advertise", r.Advertise)
		}
		if err := keys.Server(r.ServerID).Check(); err != nil {
			bad("raft.server_id", "%v", err)
		}
		if f.Vault == nil && f.Client == nil && !loopback(r.Listen) {
			bad("raft.listen", "beyond this machine it needs a block vault or node_tls")
		}
		own := false
		for _, p := range r.Peers {
			hostPort(fmt.Sprintf("raft.peer.%s.address", p.ID), p.Address)
			own = own || p.ID == r.ServerID
		}
		if len(r.Peers) > 0 && !own {
			bad("raft.peer", "none of them is this server, %.80q", r.ServerID)
		}
		for _, addr := range r.RetryJoin {
			hostPort("raft.retry_join", addr)
		}
		if r.Join != nil && r.Join.Consul == nil {
			bad("raft.join", "needs a block consul")
		}
	}
	if f.Autopilot != nil && f.Raft == nil {
		bad("autopilot", "needs a block raft: one server alone has nothing to keep")
	}
	if _, err := f.Autopilot.settings(); err != nil {
		errs = append(errs, fmt.Errorf("configuration: %w", err))
	}
	if v := f.Vault; v != nil {
		for name, path := range map[string]string{"vault.link_key": v.LinkKey, "vault.snapshot_key": v.SnapshotKey, "vault.secret_key": v.SecretKey} {
			if path == "" {
				continue
			}
			if err := vault.KeyPath(path).CheckRing(); err != nil {
				bad(name, "%v", err)
			}
		}
	}
	if v := f.Vault; v != nil && v.AuditKey != "" {
		if err := vault.KeyPath(v.AuditKey).CheckSigner(); err != nil {
			bad("vault.audit_key", "%v", err)
		}
	}
	if _, err := f.Rebalance.policy(); err != nil {
		errs = append(errs, err)
	}
	if n := f.Nomad; n != nil {
		if n.Priority < 0 || n.Priority > 100 {
			bad("nomad.priority", "%d is not between 1 and 100", n.Priority)
		}
		if n.MHzPerCore < 0 {
			bad("nomad.mhz_per_core", "%d is negative", n.MHzPerCore)
		}
		if (n.CertFile == "") != (n.KeyFile == "") {
			bad("nomad.cert_file", "goes together with key_file")
		}
	}
	return errors.Join(errs...)
}

// loopback reports whether an address can be reached from this machine only.
func loopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (f File) checkNodes(bad func(field, format string, args ...any), hostPort, abs func(field, v string)) {
	if f.Consul != nil && len(f.Nodes) > 0 {
		bad("node", "nodes come from consul: there must be no block node")
	}
	if f.Consul == nil && f.Nomad == nil && len(f.Nodes) > 1 {
		bad("node", "without nomad there is one node, not %d", len(f.Nodes))
	}
	if f.Consul != nil && f.Nomad == nil {
		bad("consul", "needs a block nomad, which places sandboxes on the nodes that consul knows")
	}
	if f.Vault != nil && f.Client != nil {
		bad("node_tls", "the certificates come from vault: there must be no block node_tls")
	}
	for _, n := range f.Nodes {
		field := "node." + n.Name
		switch {
		case (n.Socket == "") == (n.Address == ""):
			bad(field, "needs either socket or address")
		case n.Socket != "":
			abs(field+".socket", n.Socket)
		default:
			hostPort(field+".address", n.Address)
			if f.Vault == nil && f.Client == nil {
				bad(field+".address", "a node over TCP needs a block vault or node_tls")
			}
		}
	}
}

// duration is a field of File with a time in it, and where its value goes.
type duration struct {
	name, text string
	to         *time.Duration
}

func (f File) durations(c *Config) []duration {
	if c == nil {
		c = &Config{}
	}
	return []duration{
		{"max_lifetime", f.MaxLifetime, &c.MaxLifetime},
		{"default_timeout", f.DefaultTimeout, &c.DefaultTimeout},
		{"retention", f.Retention, &c.Retention},
	}
}
