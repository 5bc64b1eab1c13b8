package devserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/dev"
	"github.com/soulbox-dev/soulbox/control/health/consul"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/placement/nomad"
	"github.com/soulbox-dev/soulbox/control/state"
)

const (
	driverName = "nomad-driver-soulbox"
	// clusterDir is the folder of a cluster in the state folder. Its control server has a state of its own: the one without a
	// cluster knows other sandboxes.
	clusterDir = "cluster"
)

// StartCluster starts Nomad, Consul, Vault and the node's daemon as processes of their own, and a control server in this
// one that uses them. It needs root. The caller closes the server.
func StartCluster(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	driver, err := beside(driverName)
	if err != nil {
		return nil, err
	}
	init := cfg.InitPath
	if init == "" {
		if init, err = beside("soulbox-init"); err != nil {
			return nil, err
		}
	}
	engine, err := beside(vault.EngineType)
	if err != nil {
		return nil, err
	}
	ports, err := ports(cfg.FreePorts)
	if err != nil {
		return nil, err
	}
	group, slot := identity(cfg.StateDir)
	c, err := dev.Start(ctx, dev.Config{
		Dir: filepath.Join(cfg.StateDir, clusterDir), Ports: ports, Driver: driver, Init: init, Engine: engine,
		NodeConfig: nodeConfig(group, slot, cfg.Network), Logger: cfg.Logger.Named("cluster"),
	})
	if err != nil {
		return nil, err
	}
	s := newServer(ctx, func() error { return c.Stop(context.WithoutCancel(ctx)) })
	for _, u := range c.URLs() {
		s.Links = append(s.Links, Link{Name: u.Name, URL: u.Address, Note: u.Note})
	}
	s.wg.Go(func() {
		select {
		case err := <-c.Failed():
			s.ended(err)
		case <-s.ctx.Done():
		}
	})
	if err := s.clustered(ctx, cfg, c); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// ports are those of the agents. An agent whose port is taken says so in its log only, so they are tried before.
func ports(free bool) (dev.Ports, error) {
	if free {
		return dev.Ports{}, nil
	}
	p := dev.DefaultPorts
	for name, port := range map[string]int{"Nomad": p.Nomad, "Consul": p.Consul, "Vault": p.Vault, "the node": p.Node} {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return p, fmt.Errorf("the port of %s is taken: %w (-free-ports uses others)", name, err)
		}
		if err := l.Close(); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (s *Server) clustered(ctx context.Context, cfg Config, c *dev.Cluster) error {
	directory, err := consul.Open(consul.Config{Address: c.ConsulAddress(), Logger: cfg.Logger.Named("consul")})
	if err != nil {
		return err
	}
	placer, err := nomad.New(c.NomadConfig())
	if err != nil {
		directory.Close()
		return err
	}
	conf := service.Config{Config: coreConfig(cfg, filepath.Join(clusterDir, "server")), Listen: cfg.Listen, Registries: cfg.Registries, Closers: []func() error{
		func() error { directory.Close(); return nil },
		func() error { placer.Close(); return nil },
	}}
	conf.Directory, conf.Placer, conf.NodeTLS = directory, placer, service.Renewing(c.NodeTLS)
	if err := service.VaultKeys(ctx, c.Vault(), service.VaultKeyPaths{Links: dev.LinkKey, Snapshots: dev.SnapshotKey, Audit: dev.AuditKey}, &conf); err != nil {
		return errors.Join(err, closeAll(conf.Closers))
	}
	if err := s.serve(ctx, conf); err != nil {
		return err
	}
	return s.configureEngine(ctx, c)
}

// closeAll calls what service.Open would have taken over.
func closeAll(closers []func() error) error {
	var errs []error
	for _, f := range closers {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// configureEngine gives Vault's engine a key of its own.
func (s *Server) configureEngine(ctx context.Context, c *dev.Cluster) error {
	if s.APIKey == "" {
		return nil // the caller says so
	}
	client, err := api.New(api.Config{Address: s.Address, APIKey: s.APIKey})
	if err != nil {
		return err
	}
	defer client.Close()
	key, err := engineKey(ctx, client)
	if err != nil {
		return fmt.Errorf("key of vault's engine: %w", err)
	}
	return c.ConfigureEngine(ctx, s.Address, key, state.DefaultTenant)
}

// engineKeyName is the name of the key that the engine of a development cluster has. Vault forgets it at its end, so each start replaces
// the last one's.
const engineKeyName = "vault-engine"

func engineKey(ctx context.Context, client *api.Client) (string, error) {
	list, err := client.Keys(ctx)
	if err != nil {
		return "", err
	}
	for _, k := range list {
		if k.Name == engineKeyName {
			if err := client.DeleteKey(ctx, k.ID); err != nil {
				return "", err
			}
		}
	}
	made, err := client.CreateKey(ctx, api.NewKey{Name: engineKeyName, Roles: []string{"admin"}, Everywhere: true})
	return made.Secret, err
}

// beside finds a program of the project: beside this one, or where an installation puts it.
func beside(name string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	places := []string{filepath.Join(filepath.Dir(exe), name), filepath.Join("/usr/libexec/soulbox", name)}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is at none of %s and %s", name, places[0], places[1])
}

// nodeConfig is the configuration file of the cluster's node.
func nodeConfig(group string, slot uint32, network string) string {
	return fmt.Sprintf(`cgroup_parent = %q
id_range_base = %d
network {
  mode            = %q
  publish_address = %q
  publish_ports   = "%d-%d"
}
`, group, slot, network, publishAddress, publishFrom, publishTo)
}
