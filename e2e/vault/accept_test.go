package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
)

// startServers runs n servers of one cluster, each as its configuration file says, which has more at its end. The first one leads or
// knows who does; key is the first key of the cluster.
func startServers(t *testing.T, n int, more string) (servers []*control, key string) {
	t.Helper()
	var peers strings.Builder
	var raft []string
	for i := range n {
		raft = append(raft, agenttest.Address(t))
		fmt.Fprintf(&peers, "peer \"s%d\" { address = %q }\n", i, raft[i])
	}
	type opened struct {
		s   *service.Service
		err error
	}
	all := make([]opened, n)
	var wg sync.WaitGroup
	for i := range n {
		node := fleettest.New(t)
		f, err := service.Parse(fmt.Appendf(nil, `
listen   = "127.0.0.1:0"
data_dir = %q
node "local" { socket = %q }
raft {
  listen    = %q
  server_id = "s%d"
  %s
}
%s`, t.TempDir(), node.Socket, raft[i], i, peers.String(), more), "server.hcl")
		must.NoError(t, err)
		f = f.WithDefaults()
		must.NoError(t, f.Check())
		cfg, err := f.Config(t.Context(), func(string) string { return "" }, hclog.NewNullLogger())
		must.NoError(t, err)
		cfg.Pace = coretest.Quick
		wg.Go(func() { all[i].s, all[i].err = service.Open(t.Context(), cfg) })
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for i, o := range all {
		must.NoError(t, o.err, must.Sprintf("server %d", i))
		if o.s.Core.Bootstrapped {
			key = o.s.Core.Bootstrap.Key()
		}
		running.Go(func() {
			if err := o.s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		servers = append(servers, &control{Service: o.s, t: t})
	}
	must.NotEq(t, "", key)
	return servers, key
}

// everywhere waits until all servers answer a key or token with a status, and returns how long that took.
func everywhere(t *testing.T, servers []*control, key string, want int) time.Duration {
	t.Helper()
	begin := time.Now()
	for i, c := range servers {
		agenttest.Eventually(t, 20*time.Second, func() error {
			if got := c.status(key); got != want {
				return fmt.Errorf("server %d answers %d", i, got)
			}
			return nil
		})
	}
	return time.Since(begin)
}

// atLeader points the engine at the server that leads, which alone makes keys, until do succeeds: on a busy machine they elect another now and then.
func atLeader(t *testing.T, s *stand, servers []*control, key string, do func() error) {
	t.Helper()
	agenttest.Eventually(t, time.Minute, func() error {
		for _, c := range servers {
			if c.Core.State.Leads() {
				s.ok("write", "soulbox/config", "address="+c.Address(), "api_key="+key)
				return do()
			}
		}
		return errors.New("no server leads")
	})
}

// What the engine issues is good at every server, and what it takes back is at none.
func TestEngine_whatItIssuesIsAcceptedByEveryServer(t *testing.T) {
	s := startVault(t)
	// The servers are told of the engine before it is there: its keys are read when a token comes.
	servers, admin := startServers(t, 3, fmt.Sprintf(`
auth {
  vault "vault" {
    issuer    = "vault-plugin-secrets-soulbox"
    audiences = ["soulbox"]
    jwks_url  = "%s/v1/soulbox/jwks"
  }
}`, s.Config.Address()))
	enabled(t, s, servers[1].Address(), admin)

	var made struct {
		Lease string `json:"lease_id"`
		Data  struct {
			Key string `json:"api_key"`
		} `json:"data"`
	}
	atLeader(t, s, servers, admin, func() error {
		out, err := s.run("read", "-format=json", "soulbox/creds/dev")
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), &made)
	})
	everywhere(t, servers, made.Data.Key, http.StatusOK)
	atLeader(t, s, servers, admin, func() error {
		_, err := s.run("lease", "revoke", "-sync", made.Lease)
		return err
	})
	took := everywhere(t, servers, made.Data.Key, http.StatusUnauthorized)
	t.Logf("401 at %d servers %s after the command had returned", len(servers), took.Round(time.Millisecond))

	data, _ := s.data("read", "soulbox/token/dev")
	token, _ := data["token"].(string)
	everywhere(t, servers, token, http.StatusOK)
	parts := strings.Split(token, ".")
	everywhere(t, servers, parts[0]+"."+parts[1]+"."+strings.Repeat("A", len(parts[2])), http.StatusUnauthorized)

	s.ok("write", "-f", "soulbox/token-keys/rotate") // which refuses nobody
	data, _ = s.data("read", "soulbox/token/dev")
	next, _ := data["token"].(string)
	everywhere(t, servers, token, http.StatusOK)
	everywhere(t, servers, next, http.StatusOK)
}
