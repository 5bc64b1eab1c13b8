package dev

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func (c *Cluster) nodeTLSDir() string { return filepath.Join(c.cfg.Dir, "tls", "node") }

// identify returns the id that the Nomad client has, or shall have: the node carries the same one.
func (c *Cluster) identify() (api.NodeID, error) {
	id, err := agent.ReadNodeID(c.nomadDir())
	if err != nil || id != "" {
		return api.NodeID(id), err
	}
	// Nomad takes nothing but a UUID.
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return api.NodeID(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])), nil
}

// startNode runs the node daemon, known to Consul and with the certificate of Vault.
func (c *Cluster) startNode(ctx context.Context) error {
	port := c.cfg.Ports.Node
	if port == 0 {
		free, err := agent.FreePorts(1)
		if err != nil {
			return err
		}
		port = free[0]
	}
	dir := filepath.Join(c.cfg.Dir, "node")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file := func(name string) string { return strconv.Quote(filepath.Join(c.nodeTLSDir(), name)) }
	config := fmt.Sprintf(`node_id   = %q
node_name = "dev"
state_dir = %q
run_dir   = %q
socket    = %q
address   = %q
init_path = %q
snapshot_key_from = "control"
tls {
  ca_file      = %s
  cert_file    = %s
  key_file     = %s
  client_names = [%q]
}
consul {
  address = %q
}
%s
`, c.nodeID, filepath.Join(dir, "state"), filepath.Join(c.cfg.Dir, "run"), c.Socket(), agent.Address(port), c.cfg.Init,
		file(keys.CAFile), file(keys.CertFile), file(keys.KeyFile), keys.RoleServer.DNSName(),
		c.consul.Config.Address(), c.cfg.NodeConfig)
	path := filepath.Join(dir, "node.hcl")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	client := nodeapi.NewUnix(c.Socket())
	defer client.Close()
	p, err := agent.Start(ctx, agent.Spec{
		Name: "node daemon", Path: c.cfg.Driver, Args: []string{"node", "-config", path}, Dir: dir,
		Log: filepath.Join(dir, "node.log"),
		Ready: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			n, err := client.Node(ctx)
			if err == nil && n.ID != c.nodeID {
				err = fmt.Errorf("another daemon, %s, answers at %s", n.ID, c.Socket())
			}
			return err
		},
	})
	if err != nil {
		return err
	}
	c.node = p
	return nil
}
