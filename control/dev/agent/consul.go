package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
)

// Consul is a Consul agent in dev mode: one server, everything in memory, with its UI.
type Consul struct {
	*Process
	Config ConsulConfig // with the ports that it got
}

// ConsulConfig says how to run Consul. A port of 0 is a free one.
type ConsulConfig struct {
	Binary string
	Dir    string // for its log and configuration
	HTTP   int
	Server int
	Serf   int
	// Token is the first token, which may do everything. ACLs are on then, and what needs no token is still allowed. Empty: no ACLs.
	Token string
}

// Address returns the URL of its API and UI.
func (c ConsulConfig) Address() string { return "http://" + Address(c.HTTP) }

// StartConsul runs Consul and waits until it has a leader.
func StartConsul(ctx context.Context, cfg ConsulConfig) (*Consul, error) {
	if err := fill(&cfg.HTTP, &cfg.Server, &cfg.Serf); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	args := []string{
		"agent", "-dev", "-bind=" + Loopback, "-client=" + Loopback, "-log-level=info",
		"-http-port=" + strconv.Itoa(cfg.HTTP), "-server-port=" + strconv.Itoa(cfg.Server),
		"-serf-lan-port=" + strconv.Itoa(cfg.Serf), "-serf-wan-port=-1",
		"-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1",
		"-hcl=disable_update_check = true",
	}
	if cfg.Token != "" {
		acl := "acl {\n  enabled = true\n  default_policy = \"allow\"\n  tokens {\n    initial_management = " + quote(cfg.Token) + "\n  }\n}\n"
		file := filepath.Join(cfg.Dir, "acl.hcl") // not on the command line, which everybody reads
		if err := os.WriteFile(file, []byte(acl), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-config-file="+file)
	}
	p, err := Start(ctx, Spec{
		Name: "consul", Path: cfg.Binary, Args: args, Dir: cfg.Dir, Log: filepath.Join(cfg.Dir, "consul.log"),
		Ready: func(ctx context.Context) error {
			var leader string
			if err := probe(ctx, cfg.Address()+"/v1/status/leader", "", &leader); err != nil {
				return err
			}
			if leader == "" {
				return errors.New("no leader yet")
			}
			var nodes []struct{}
			if err := probe(ctx, cfg.Address()+"/v1/catalog/nodes", "", &nodes); err != nil {
				return err
			}
			if len(nodes) == 0 {
				return errors.New("not in its own catalog yet")
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return &Consul{Process: p, Config: cfg}, nil
}
