// Package dev runs a SoulBox cluster of one machine: real Nomad, Consul and Vault agents and a node daemon beside the
// control service, wired as an operator would wire them.
//
// It owns the processes, one folder with everything that they keep, and the order in which they start and end. It is for
// development, demonstrations and tests: one server each, no access control, everything on loopback. It never runs the
// control service itself, and never touches a process that it did not start.
package dev

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/placement/nomad"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

// Ports of the cluster on 127.0.0.1. 0 is a free one.
type Ports struct {
	Nomad, Consul, Vault int // API and UI
	Node                 int // the daemon's API, with mutual TLS
}

// DefaultPorts are those under which everybody looks for the agents.
var DefaultPorts = Ports{Nomad: 4646, Consul: 8500, Vault: 8200, Node: 7302}

// Config describes a cluster. Zero values mean the defaults.
type Config struct {
	// Dir holds everything. What is in it of an earlier run goes on: Nomad's jobs, the node's templates. A unix socket
	// lies in it, whose path the kernel limits to 107 bytes: 80 for Dir.
	Dir   string
	Ports Ports
	// The executables of the stack; looked for by stack.Find.
	Nomad, Consul, Vault string
	// Driver is the path of nomad-driver-soulbox, Init that of soulbox-init. Both are needed.
	Driver, Init string
	// Engine is the path of vault-plugin-secrets-soulbox. Empty: Vault has no engine of SoulBox.
	Engine string
	// DevicePlugins are Nomad's device plugins, by the paths of their executables.
	DevicePlugins map[string]agent.NomadPlugin
	NodeConfig    string // more attributes of the daemon's configuration file, in HCL
	ServerName    string // of the control service, in its certificate; default "dev"
	Logger        hclog.Logger
}

// Cluster is a running cluster.
type Cluster struct {
	cfg    Config
	log    hclog.Logger
	nodeID api.NodeID

	consul *agent.Consul
	vault  *agent.Vault
	nomad  *agent.Nomad
	node   *agent.Process

	issuer  *vault.Issuer
	server  *keys.Keeper
	nodeKey *keys.Keeper

	lock   *os.File
	cancel context.CancelFunc // of the keepers and watchers
	wg     sync.WaitGroup
	failed chan error
}

// Start runs the cluster and returns when all of it is ready. What it started is gone again where it fails. The caller
// stops the cluster, after its own control service.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &Cluster{cfg: cfg, log: cfg.Logger, cancel: cancel, failed: make(chan error, 1)}
	for _, step := range []func(context.Context) error{c.acquire, c.startServers, c.certify, c.startNode, c.startClient} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("cluster: %w", err), c.Stop(context.WithoutCancel(ctx)))
		}
	}
	c.wg.Go(func() { c.server.Run(background) })
	c.wg.Go(func() { c.nodeKey.Run(background) })
	for _, p := range []*agent.Process{c.consul.Process, c.vault.Process, c.node, c.nomad.Server, c.nomad.Client} {
		c.wg.Go(func() { c.watch(background, p) })
	}
	return c, nil
}

// acquire makes the folder this process's own.
func (c *Cluster) acquire(context.Context) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(c.cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("%s is in use by another cluster: %w", c.cfg.Dir, err), lock.Close())
	}
	c.lock = lock
	return nil
}

// startServers runs Consul, Vault and Nomad's server, all at once: each waits for nothing but itself.
func (c *Cluster) startServers(ctx context.Context) error {
	var err error
	if c.nodeID, err = c.identify(); err != nil {
		return err
	}
	plugins, err := c.linkPlugins()
	if err != nil {
		return err
	}
	engines, err := c.copyEngine()
	if err != nil {
		return err
	}
	if c.cfg.Ports.Consul == 0 { // Nomad needs it before Consul runs
		free, err := agent.FreePorts(1)
		if err != nil {
			return err
		}
		c.cfg.Ports.Consul = free[0]
	}
	c.nomad, err = agent.NewNomad(agent.NomadConfig{
		Binary: c.cfg.Nomad, Dir: c.nomadDir(), HTTP: c.cfg.Ports.Nomad, NodeID: string(c.nodeID),
		Consul: agent.Address(c.cfg.Ports.Consul), PluginDir: plugins,
		// The plugin finds the daemon that runs already.
		Plugins: append([]agent.NomadPlugin{{Name: pluginName, Config: map[string]any{"socket": c.Socket(), "start_node": false}}},
			slices.Collect(maps.Values(c.cfg.DevicePlugins))...),
	})
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		c.consul, err = agent.StartConsul(gctx, agent.ConsulConfig{
			Binary: c.cfg.Consul, Dir: filepath.Join(c.cfg.Dir, "consul"), HTTP: c.cfg.Ports.Consul,
		})
		return err
	})
	group.Go(func() (err error) {
		c.vault, err = agent.StartVault(gctx, agent.VaultConfig{
			Binary: c.cfg.Vault, Dir: filepath.Join(c.cfg.Dir, "vault"), HTTP: c.cfg.Ports.Vault, PluginDir: engines,
		})
		return err
	})
	group.Go(func() error { return c.nomad.StartServer(gctx) })
	return group.Wait()
}

// certify gets the certificates of the control service and of the node from Vault.
func (c *Cluster) certify(ctx context.Context) error {
	var err error
	if c.issuer, err = vault.New(c.VaultConfig()); err != nil {
		return err
	}
	if err := c.issuer.Prepare(ctx); err != nil {
		return err
	}
	if err := c.prepareKeys(ctx); err != nil {
		return err
	}
	server := keys.Request{Identity: keys.Server(c.cfg.ServerName)}
	if c.server, err = keys.Keep(ctx, c.issuer, server, c.ServerTLSDir(), c.log); err != nil {
		return err
	}
	node := keys.Request{Identity: keys.Node(c.nodeID), IPs: []net.IP{net.ParseIP(agent.Loopback)}}
	c.nodeKey, err = keys.Keep(ctx, c.issuer, node, c.nodeTLSDir(), c.log)
	return err
}

// startClient runs Nomad's client, on which the driver is healthy once the daemon answers.
func (c *Cluster) startClient(ctx context.Context) error { return c.nomad.StartClient(ctx) }

func (c *Cluster) nomadDir() string { return filepath.Join(c.cfg.Dir, "nomad") }

// linkPlugins makes a folder with the driver, and the plugins of devices, as the only ones.
func (c *Cluster) linkPlugins() (dir string, err error) {
	dir = filepath.Join(c.cfg.Dir, "plugins")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	programs := map[string]string{pluginName: c.cfg.Driver}
	for path, p := range c.cfg.DevicePlugins {
		programs[p.Name] = path
	}
	for name, path := range programs {
		link := filepath.Join(dir, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err := os.Symlink(path, link); err != nil {
			return "", err
		}
	}
	return dir, nil
}

const pluginName = "nomad-driver-soulbox"

// watch reports a process that ends before the cluster is stopped.
func (c *Cluster) watch(ctx context.Context, p *agent.Process) {
	select {
	case <-ctx.Done():
	case <-p.Done():
		if ctx.Err() != nil {
			return
		}
		select {
		case c.failed <- fmt.Errorf("%w; see %s", p.Err(), p.Log()):
		default:
		}
	}
}

// Failed delivers the first process that ends before Stop. The rest of the cluster runs on.
func (c *Cluster) Failed() <-chan error { return c.failed }

// URL is where people look at a part of the cluster.
type URL struct{ Name, Address, Note string }

// URLs returns the UIs.
func (c *Cluster) URLs() []URL {
	return []URL{
		{"Nomad", c.nomad.Config.Address() + "/ui/jobs", ""},
		{"Consul", c.consul.Config.Address() + "/ui/dc1/services", ""},
		{"Vault", c.vault.Config.Address() + "/ui", "token " + c.vault.Config.RootToken},
	}
}

// NodeID returns the id of the one node, which is also that of the Nomad client.
func (c *Cluster) NodeID() api.NodeID { return c.nodeID }

// Socket returns the path of the node daemon's unix socket.
func (c *Cluster) Socket() string { return filepath.Join(c.cfg.Dir, "run", "node.sock") }

// NomadConfig returns the settings of a placer of this cluster.
func (c *Cluster) NomadConfig() nomad.Config {
	return nomad.Config{Address: c.nomad.Config.Address(), Logger: c.log.Named("placement")}
}

// ConsulAddress returns the address for a directory of this cluster's nodes.
func (c *Cluster) ConsulAddress() string { return c.consul.Config.Address() }

// VaultConfig returns the settings of an issuer of this cluster's certificates.
func (c *Cluster) VaultConfig() vault.Config {
	return vault.Config{Address: c.vault.Config.Address(), Token: c.vault.Config.RootToken, Logger: c.log.Named("vault")}
}

// Issuer returns the issuer of this cluster's certificates.
func (c *Cluster) Issuer() keys.Issuer { return c.issuer }

// ServerTLSDir returns the folder with the control service's own certificate, in the files that package keys names. They are
// renewed as long as the cluster runs.
func (c *Cluster) ServerTLSDir() string { return filepath.Join(c.cfg.Dir, "tls", "server") }

// NodeTLS returns the control service's side of mutual TLS to a node, with the certificate of this moment.
func (c *Cluster) NodeTLS(n health.Node) (*tls.Config, error) {
	return c.server.Certificate().ClientTLS(keys.Node(n.ID)), nil
}

func (c *Config) complete() error {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.ServerName == "" {
		c.ServerName = "dev"
	}
	if c.Dir == "" {
		return errors.New("it has no folder")
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return err
	}
	for _, b := range []struct {
		name string
		path *string
	}{{"nomad", &c.Nomad}, {"consul", &c.Consul}, {"vault", &c.Vault}} {
		if *b.path == "" {
			if *b.path, err = stack.Find(b.name); err != nil {
				return err
			}
		}
	}
	programs := map[string]*string{pluginName: &c.Driver, "soulbox-init": &c.Init}
	if c.Engine != "" {
		programs[vault.EngineType] = &c.Engine
	}
	for name, path := range programs {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if fi, err := os.Stat(*path); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		} else if !fi.Mode().IsRegular() {
			return fmt.Errorf("%s: %s is no file", name, *path)
		}
	}
	return nil
}

// Processes returns the processes by their names, for tests that break them.
func (c *Cluster) Processes() map[string]*agent.Process {
	return map[string]*agent.Process{
		"consul": c.consul.Process, "vault": c.vault.Process, "node": c.node,
		"nomad server": c.nomad.Server, "nomad client": c.nomad.Client,
	}
}

// Nomad returns the Nomad agents, for tests that start them again.
func (c *Cluster) Nomad() *agent.Nomad { return c.nomad }
