package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// service is `soulbox server` on a cluster: Nomad places, Consul knows the node, and certificates and keys are Vault's.
type service struct {
	*cluster
	t      *testing.T // for what outlives a part of a test
	client *api.Client
}

// serve runs the control service, with the template base, which has a shell.
func (c *cluster) serve(t *testing.T) *service {
	t.Helper()
	ports := agenttest.Ports(t, 1)
	address, dir := agent.Address(ports[0]), filepath.Join(c.dir, "server")
	v := c.VaultConfig()
	token := filepath.Join(c.dir, "vault-token")
	must.NoError(t, os.WriteFile(token, []byte(v.Token), 0o600))
	config := filepath.Join(c.dir, "server.hcl")
	must.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `listen   = %q
data_dir = %q
nomad {
  address = %q
}
consul {
  address = %q
}
vault {
  address      = %q
  token_file   = %q
  snapshot_key = %q
  audit_key    = %q
}
`, address, dir, c.NomadConfig().Address, c.ConsulAddress(), v.Address, token, dev.SnapshotKey, dev.AuditKey), 0o600))
	probe, err := api.New(api.Config{Address: "http://" + address})
	must.NoError(t, err)
	t.Cleanup(probe.Close)
	p, err := agent.Start(t.Context(), agent.Spec{
		Name: "soulbox server", Path: binaries.Path(t, "soulbox"), Args: []string{"server", "-config", config}, Dir: c.dir, Log: filepath.Join(c.dir, "server", "server.log"),
		Ready: func(ctx context.Context) error {
			_, err := probe.Health(ctx)
			return err
		},
	})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, p.Stop(context.WithoutCancel(t.Context()))) })
	key, err := os.ReadFile(filepath.Join(dir, "bootstrap-key"))
	must.NoError(t, err)
	s := &service{cluster: c, t: t}
	s.client, err = api.New(api.Config{Address: "http://" + address, APIKey: strings.TrimSpace(string(key))})
	must.NoError(t, err)
	t.Cleanup(s.client.Close)
	s.until(t, "the node to be connected", func() error {
		nodes, err := s.client.Nodes(t.Context())
		if err == nil && (len(nodes) != 1 || !nodes[0].Connected) {
			err = fmt.Errorf("%+v", nodes)
		}
		return err
	})
	lower := filepath.Join(c.dir, "lower")
	must.NoError(t, sandboxtest.MakeLower(lower))
	tar := exec.Command("tar", "-C", lower, "--numeric-owner", "-cf", "-", ".")
	out, err := tar.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, tar.Start())
	_, err = s.client.ImportTemplate(t.Context(), "base", out, api.ImportOptions{Source: "the test's own"})
	must.NoError(t, errors.Join(err, tar.Wait()))
	return s
}
