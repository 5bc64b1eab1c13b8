package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/consul"
	"github.com/soulbox-dev/soulbox/control/health/join"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/placement/nomad"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Config makes a Service's configuration of f, which Check has accepted, and connects to what f names. Open takes what
// it returns over. env is the environment, for tokens.
func (f File) Config(ctx context.Context, env func(string) string, log hclog.Logger) (cfg Config, err error) {
	cfg = Config{Listen: f.Listen, Audit: f.Audit.config(), Config: core.Config{DataDir: f.DataDir, DefaultQuota: f.DefaultQuota, Logger: log}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("configuration: %w", err)
			for _, c := range cfg.Closers {
				err = errors.Join(err, c())
			}
		}
	}()
	for _, d := range f.durations(&cfg) {
		if d.text == "" {
			continue
		}
		if *d.to, err = time.ParseDuration(d.text); err != nil {
			return cfg, fmt.Errorf("%s: %w", d.name, err)
		}
	}
	cfg.Registries = f.ImageRegistries
	if t := f.TLS; t != nil {
		files := &certFiles{cert: t.CertFile, key: t.KeyFile}
		if _, err := files.get(); err != nil {
			return cfg, fmt.Errorf("tls: %w", err)
		}
		cfg.TLS = &tls.Config{
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{"h2", "http/1.1"}, // who wants an upgrade asks for the latter
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return files.get() },
		}
	}
	if err := f.raft(env, &cfg); err != nil {
		return cfg, err
	}
	if cfg.Links, cfg.Login, err = f.Auth.links(); err != nil {
		return cfg, err
	}
	if f.Auth != nil && len(f.Auth.Certificate) > 0 && cfg.TLS != nil {
		cfg.TLS.ClientAuth = tls.RequestClientCert // whether it is any good the link says, with the authorities of the moment
	}
	if err := f.internalTLS(ctx, env, &cfg); err != nil {
		return cfg, err
	}
	if err := f.directory(env, &cfg); err != nil {
		return cfg, err
	}
	if cfg.Rebalance, err = f.Rebalance.policy(); err != nil {
		return cfg, err
	}
	return cfg, f.placer(env, &cfg)
}

func (f File) raft(env func(string) string, cfg *Config) (err error) {
	r := f.Raft
	if r == nil {
		return nil
	}
	cfg.RaftAddr, cfg.RaftAdvertise, cfg.ServerID = r.Listen, r.Advertise, r.ServerID
	for _, p := range r.Peers {
		cfg.Peers = append(cfg.Peers, state.Peer{ID: p.ID, Addr: p.Address})
	}
	if cfg.Autopilot, err = f.Autopilot.settings(); err != nil {
		return err
	}
	var found func(context.Context) ([]string, error)
	if r.Join != nil {
		if found, err = f.joinConsul(env, cfg); err != nil {
			return fmt.Errorf("raft.join.consul: %w", err)
		}
	}
	if len(r.RetryJoin) == 0 && found == nil {
		return nil
	}
	cfg.Others = func(ctx context.Context) ([]string, error) {
		if found == nil {
			return r.RetryJoin, nil
		}
		more, err := found(ctx)
		return append(slices.Clone(r.RetryJoin), more...), err
	}
	return nil
}

// joinConsul makes this server known in Consul while it runs, and returns what finds the others there.
func (f File) joinConsul(env func(string) string, cfg *Config) (func(context.Context) ([]string, error), error) {
	c := *f.Raft.Join.Consul
	if f.Consul != nil {
		set(&c.Address, f.Consul.Address)
		set(&c.TokenFile, f.Consul.TokenFile)
		set(&c.Datacenter, f.Consul.Datacenter)
	}
	token, err := secret(c.TokenFile, env("CONSUL_HTTP_TOKEN"))
	if err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	addr := f.Raft.Advertise
	set(&addr, f.Raft.Listen)
	j, err := join.New(join.Config{
		Address: c.Address, Token: token, Datacenter: c.Datacenter, Service: c.Service, ServerID: f.Raft.ServerID, Raft: addr, Version: version.Version,
		Logger: cfg.Logger.Named("join"),
	})
	if err != nil {
		return nil, err
	}
	cfg.Closers = append(cfg.Closers, func() error { j.Close(); return nil })
	cfg.Background = append(cfg.Background, j.Run)
	return j.Servers, nil
}

func (f File) directory(env func(string) string, cfg *Config) error {
	if c := f.Consul; c != nil {
		token, err := secret(c.TokenFile, env("CONSUL_HTTP_TOKEN"))
		if err != nil {
			return fmt.Errorf("consul.token_file: %w", err)
		}
		d, err := consul.Open(consul.Config{
			Address: c.Address, Token: token, Datacenter: c.Datacenter, Service: c.Service, Logger: cfg.Logger.Named("consul"),
		})
		if err != nil {
			return fmt.Errorf("consul: %w", err)
		}
		cfg.Directory = d
		cfg.Closers = append(cfg.Closers, func() error { d.Close(); return nil })
		return nil
	}
	var list []health.Node
	for _, n := range f.Nodes {
		addr := "https://" + n.Address
		if n.Socket != "" {
			addr = "unix://" + n.Socket
		}
		list = append(list, health.Node{Name: n.Name, Address: addr})
	}
	d, err := static.New(list...)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	cfg.Directory = d
	return nil
}

func (f File) placer(env func(string) string, cfg *Config) error {
	n := f.Nomad
	if n == nil {
		client, err := f.nodeClient(cfg)
		if err != nil {
			return err
		}
		p := local.New(client)
		cfg.Placer = p
		cfg.Closers = append(cfg.Closers, func() error { client.Close(); return nil }, func() error { p.Close(); return nil })
		return nil
	}
	token, err := secret(n.TokenFile, env("NOMAD_TOKEN"))
	if err != nil {
		return fmt.Errorf("nomad.token_file: %w", err)
	}
	nc := nomad.Config{
		Address: n.Address, Token: token, Region: n.Region, Namespace: n.Namespace, Prefix: n.JobPrefix, NodePool: n.NodePool,
		Datacenters: n.Datacenters, Priority: n.Priority, MHzPerCore: n.MHzPerCore, Logger: cfg.Logger.Named("nomad"),
	}
	if n.CAFile != "" || n.CertFile != "" {
		nc.TLS = &nomadapi.TLSConfig{CACert: n.CAFile, ClientCert: n.CertFile, ClientKey: n.KeyFile}
	}
	p, err := nomad.New(nc)
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	cfg.Placer = p
	cfg.Closers = append(cfg.Closers, func() error { p.Close(); return nil })
	return nil
}

// nodeClient returns the client of the one node, for the local placer.
func (f File) nodeClient(cfg *Config) (*nodeapi.Client, error) {
	n := f.Nodes[0]
	if n.Socket != "" {
		return nodeapi.NewUnix(n.Socket), nil
	}
	conf, err := cfg.NodeTLS(health.Node{Name: n.Name, Address: "https://" + n.Address})
	if err != nil {
		return nil, fmt.Errorf("node.%s: %w", n.Name, err)
	}
	return nodeapi.NewTLS(n.Address, conf), nil
}

// secret reads a secret from its file, where one is named.
func secret(path, otherwise string) (string, error) {
	if path == "" {
		return otherwise, nil
	}
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

// certFiles is a certificate in files that somebody renews.
type certFiles struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	mtime  [2]time.Time
}

// get returns the certificate, read again where its files changed. While they do not fit each other the old one stays.
func (c *certFiles) get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var mtime [2]time.Time
	for i, path := range []string{c.cert, c.key} {
		st, err := os.Stat(path)
		if err != nil {
			return c.old(err)
		}
		mtime[i] = st.ModTime()
	}
	if c.loaded != nil && mtime == c.mtime {
		return c.loaded, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return c.old(err)
	}
	c.loaded, c.mtime = &pair, mtime
	return c.loaded, nil
}

func (c *certFiles) old(err error) (*tls.Certificate, error) {
	if c.loaded != nil {
		return c.loaded, nil
	}
	return nil, err
}
