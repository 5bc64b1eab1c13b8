package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Nomad is a Nomad cluster of one server and one client, each a process of its own: a client that starts in the server's
// process asks to be registered before the server can do it, and asks again only after 15 s and more.
type Nomad struct {
	Server *Process
	Client *Process
	Config NomadConfig // with the ports and the id that it got
}

// NomadConfig says how to run Nomad. A port of 0 is a free one.
type NomadConfig struct {
	Binary string
	Dir    string // configurations, logs and state; the state of an earlier run in it goes on
	HTTP   int    // of the server: API and UI
	RPC    int
	Serf   int

	ClientHTTP int
	ClientRPC  int
	// NodeID is the id of the client, a UUID, where the state has none yet. Empty: Nomad makes one.
	NodeID string
	// PluginDir is searched for the executables that Plugins names; empty: an empty folder.
	PluginDir string
	Plugins   []NomadPlugin
	Consul    string // "127.0.0.1:8500"; empty: none
	// ConsulIdentities gives services and tasks tokens of Consul by their workload identity, which "nomad setup consul" prepares.
	ConsulIdentities bool
	// Vault is its URL: tasks get tokens by their workload identity, which "nomad setup vault" prepares. Empty: none.
	Vault    string
	MemoryMB int // that the client may give away; 0: what the machine has
}

// NomadPlugin is a plugin block of Nomad's configuration.
type NomadPlugin struct {
	Name   string // of its executable, or of a driver of Nomad's own
	Device string // what it offers, as vendor/type/name, where it is a plugin of devices; empty: it is a driver
	Config map[string]any
}

// Address returns the URL of the server's API and UI.
func (c NomadConfig) Address() string { return "http://" + Address(c.HTTP) }

// StartNomad runs a server and a client and waits until they are ready for jobs.
func StartNomad(ctx context.Context, cfg NomadConfig) (*Nomad, error) {
	n, err := NewNomad(cfg)
	if err != nil {
		return nil, err
	}
	if err := n.StartServer(ctx); err != nil {
		return nil, err
	}
	if err := n.StartClient(ctx); err != nil {
		return nil, errors.Join(err, n.Server.Stop(context.WithoutCancel(ctx)))
	}
	return n, nil
}

// NewNomad returns a cluster of which nothing runs yet: StartServer, then StartClient run it.
func NewNomad(cfg NomadConfig) (*Nomad, error) {
	if err := fill(&cfg.HTTP, &cfg.RPC, &cfg.Serf, &cfg.ClientHTTP, &cfg.ClientRPC); err != nil {
		return nil, err
	}
	return &Nomad{Config: cfg}, nil
}

// Stop ends the client, then the server, as far as they run, and unmounts what the client has mounted. Tasks of drivers that keep them apart
// from Nomad go on: who wants to end them has to stop their jobs before.
func (n *Nomad) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range []*Process{n.Client, n.Server} {
		if p != nil {
			errs = append(errs, p.Stop(ctx))
		}
	}
	return errors.Join(append(errs, unmountUnder(n.Config.Dir))...)
}

// StartServer runs the server, which must not run, and waits until it leads and can register clients.
func (n *Nomad) StartServer(ctx context.Context) error {
	p, err := n.start(ctx, "server", n.Config.renderServer(), func(ctx context.Context) error {
		var leader string
		if err := probe(ctx, n.Config.Address()+"/v1/status/leader", "", &leader); err != nil {
			return err
		}
		var keys struct{ Keys []json.RawMessage }
		if err := probe(ctx, n.Config.Address()+"/.well-known/jwks.json", "", &keys); err != nil {
			return err
		}
		if leader == "" || len(keys.Keys) == 0 {
			return errors.New("no leader or no keyring yet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.Server = p
	return nil
}

// StartClient runs the client, which must not run, and waits until the server thinks it ready and it has found its drivers.
func (n *Nomad) StartClient(ctx context.Context) error {
	plugins := n.Config.PluginDir
	if plugins == "" {
		plugins = filepath.Join(n.Config.Dir, "plugins")
	}
	for _, dir := range []string{plugins, filepath.Dir(nodeIDFile(n.Config.Dir))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	id, err := ReadNodeID(n.Config.Dir)
	if err == nil && id == "" && n.Config.NodeID != "" {
		id, err = n.Config.NodeID, os.WriteFile(nodeIDFile(n.Config.Dir), []byte(n.Config.NodeID), 0o600)
	}
	if err != nil {
		return fmt.Errorf("nomad: id of the client: %w", err)
	}
	text, err := n.Config.renderClient(plugins)
	if err != nil {
		return fmt.Errorf("nomad: %w", err)
	}
	begin := time.Now()
	p, err := n.start(ctx, "client", text, func(ctx context.Context) error {
		if id, err = ReadNodeID(n.Config.Dir); err != nil || id == "" {
			return errors.Join(err, errors.New("the client has no id yet"))
		}
		return n.clientReady(ctx, id, begin)
	})
	if err != nil {
		return err
	}
	n.Client, n.Config.NodeID = p, id
	return nil
}

// clientReady asks the server for the client: ready, and with drivers that it found since begin.
func (n *Nomad) clientReady(ctx context.Context, id string, begin time.Time) error {
	var node struct {
		Status  string
		Drivers map[string]struct {
			Detected, Healthy bool
			UpdateTime        time.Time
		}
		NodeResources struct {
			Devices []struct{ Vendor, Type, Name string }
		}
	}
	if err := probe(ctx, n.Config.Address()+"/v1/node/"+id, "", &node); err != nil {
		return err
	}
	if node.Status != "ready" {
		return fmt.Errorf("the client is %q", node.Status)
	}
	for _, p := range n.Config.Plugins {
		if p.Device != "" {
			if !slices.ContainsFunc(node.NodeResources.Devices, func(d struct{ Vendor, Type, Name string }) bool {
				return d.Vendor+"/"+d.Type+"/"+d.Name == p.Device
			}) {
				return fmt.Errorf("the client has no %s yet", p.Device)
			}
			continue
		}
		d, ok := node.Drivers[strings.TrimPrefix(p.Name, driverPrefix)]
		if !ok || !d.Detected || !d.Healthy || d.UpdateTime.Before(begin) {
			return fmt.Errorf("the driver of plugin %s is not healthy yet", p.Name)
		}
	}
	return nil
}

// driverPrefix stands before a driver's name in the name of its plugin's executable.
const driverPrefix = "nomad-driver-"

func (n *Nomad) start(ctx context.Context, role, config string, ready func(context.Context) error) (*Process, error) {
	dir := filepath.Join(n.Config.Dir, role)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("nomad: %w", err)
	}
	file := filepath.Join(dir, "nomad.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("nomad: %w", err)
	}
	return Start(ctx, Spec{
		Name: "nomad " + role, Path: n.Config.Binary, Args: []string{"agent", "-config=" + file},
		Dir: dir, Log: filepath.Join(dir, "nomad.log"), Ready: ready,
	})
}

func nodeIDFile(dir string) string {
	return filepath.Join(dir, "client", "data", "client", "client-id")
}

// ReadNodeID returns the id of the client whose state is in dir, or nothing where there is none yet.
func ReadNodeID(dir string) (string, error) {
	id, err := os.ReadFile(nodeIDFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(id)), err
}
