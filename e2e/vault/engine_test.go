// Package vault tests the secrets engine, and the keys that are in Vault, against a real Vault with the plugin that users install.
//
// It owns the Vault servers and control servers that its tests start. Sandboxes are faked: what runs in them is tested elsewhere.
package vault

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { binaries.Main(m) }

// stand is a Vault with the plugin in its folder.
type stand struct {
	*agent.Vault
	t      *testing.T
	binary string
	plugin string // path of the plugin's program
}

func startVault(t *testing.T) *stand {
	t.Helper()
	agenttest.Binary(t, "vault")
	return startVaultOn(t, binaries.Path(t, vault.EngineType))
}

// startVaultWith has a plugin that is linked with settings for a test.
func startVaultWith(t *testing.T, ldflags string) *stand {
	t.Helper()
	agenttest.Binary(t, "vault")
	path := filepath.Join(t.TempDir(), "plugin")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags=hashicorpmetrics", "-ldflags=-s -w "+ldflags, "-o", path,
		"./vault-plugin/cmd/"+vault.EngineType)
	cmd.Dir = binaries.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return startVaultOn(t, path)
}

func startVaultOn(t *testing.T, program string) *stand {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir()) // Vault wants no link on the way
	must.NoError(t, err)
	content, err := os.ReadFile(program)
	must.NoError(t, err)
	plugin := filepath.Join(dir, vault.EngineType)
	must.NoError(t, os.WriteFile(plugin, content, 0o755))
	v := agenttest.Vault(t, agent.VaultConfig{PluginDir: dir})
	return &stand{Vault: v, t: t, binary: agenttest.Binary(t, "vault"), plugin: plugin}
}

// client speaks to Vault as root.
func (s *stand) client() *vaultapi.Client {
	s.t.Helper()
	conf := vaultapi.DefaultConfig()
	conf.Address = s.Config.Address()
	c, err := vaultapi.NewClient(conf)
	must.NoError(s.t, err)
	c.SetToken(s.Config.RootToken)
	return c
}

// keys is the control service's client, also as root.
func (s *stand) keys() *vault.Client {
	s.t.Helper()
	c, err := vault.Connect(vault.Config{Address: s.Config.Address(), Token: s.Config.RootToken})
	must.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

// run calls Vault's command line, as people do, and shows it in the test's log.
func (s *stand) run(args ...string) (string, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Env = append(os.Environ(), "VAULT_ADDR="+s.Config.Address(), "VAULT_TOKEN="+s.Config.RootToken, "HOME="+s.t.TempDir())
	out, err := cmd.CombinedOutput()
	s.t.Logf("$ vault %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

func (s *stand) ok(args ...string) string {
	s.t.Helper()
	out, err := s.run(args...)
	must.NoError(s.t, err, must.Sprint(out))
	return out
}

// data returns the fields of what a command reads.
func (s *stand) data(args ...string) (map[string]any, string) {
	s.t.Helper()
	var secret struct {
		LeaseID string         `json:"lease_id"`
		Data    map[string]any `json:"data"`
	}
	verb, rest := args[0], args[1:]
	out := s.ok(append([]string{verb, "-format=json"}, rest...)...)
	must.NoError(s.t, json.Unmarshal([]byte(out), &secret))
	return secret.Data, secret.LeaseID
}

// control is a control server whose sandboxes are faked.
type control struct {
	*service.Service
	t      *testing.T
	key    string
	client *api.Client
}

func startControl(t *testing.T, change func(*service.Config)) *control {
	t.Helper()
	node := fleettest.New(t)
	directory, err := static.New(health.Node{Name: "local", Address: "unix://" + node.Socket})
	must.NoError(t, err)
	nodeClient := nodeapi.NewUnix(node.Socket)
	t.Cleanup(nodeClient.Close)
	placer := local.New(nodeClient)
	t.Cleanup(placer.Close)
	cfg := service.Config{Listen: "127.0.0.1:0", Config: core.Config{
		DataDir: t.TempDir(), Directory: directory, Placer: placer, Logger: hclog.NewNullLogger(), Pace: coretest.Quick,
		Nodes: func(c *fleet.Config) { c.RetryMax = 100 * time.Millisecond },
	}}
	if change != nil {
		change(&cfg)
	}
	s, err := service.Open(t.Context(), cfg)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	c := &control{Service: s, t: t, key: s.Core.Bootstrap.Key()}
	parts := s.Core
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must.NoError(t, <-ended)
	})
	wait, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	must.NoError(t, parts.ConnectNodes(wait, 1))
	c.client, err = api.New(api.Config{Address: s.Address(), APIKey: c.key})
	must.NoError(t, err)
	t.Cleanup(c.client.Close)
	return c
}

// status is what the server answers to a key, or to a token.
func (c *control) status(key string) int {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.Address()+"/sandboxes", nil)
	must.NoError(c.t, err)
	if strings.HasPrefix(key, "ey") {
		req.Header.Set("Authorization", "Bearer "+key)
	} else {
		req.Header.Set("X-API-Key", key)
	}
	return c.do(req)
}

// open is what the server answers to a link.
func (c *control) open(query string) int {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.Address()+"/files?"+query, nil)
	must.NoError(c.t, err)
	return c.do(req)
}

func (c *control) do(req *http.Request) int {
	c.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	must.NoError(c.t, err)
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	must.NoError(c.t, err)
	return resp.StatusCode
}

// enabled is a Vault with the engine for a control server, and the role dev.
func enabled(t *testing.T, s *stand, address, key string) {
	t.Helper()
	s.ok("secrets", "enable", "-path=soulbox", vault.EngineType)
	s.ok("write", "soulbox/config", "address="+address, "api_key="+key)
	s.ok("write", "soulbox/roles/dev", "tenant=default", "roles=developer", "ttl=10m", "max_ttl=1h")
}

func TestEngine_fromRegistrationToRevocation(t *testing.T) {
	s := startVault(t)
	c := startControl(t, nil)
	sum, err := exec.CommandContext(t.Context(), "sha256sum", s.plugin).Output()
	must.NoError(t, err)
	hash, _, _ := strings.Cut(string(sum), " ")
	s.ok("plugin", "register", "-sha256="+hash, "secret", vault.EngineType)
	// Vault files it under the version that it says itself, and finds it by that one only.
	must.StrContains(t, s.ok("plugin", "info", "-version=v"+version.Version, "secret", vault.EngineType), hash)
	enabled(t, s, c.Address(), c.key)
	out := s.ok("read", "soulbox/config")
	must.StrNotContains(t, out, c.key)
	s.ok("path-help", "soulbox/creds/dev")

	data, lease := s.data("read", "soulbox/creds/dev")
	key, _ := data["api_key"].(string)
	must.Eq(t, http.StatusOK, c.status(key))
	e2b, _ := data["e2b_api_key"].(string)
	must.Eq(t, http.StatusOK, c.status(e2b))
	s.ok("lease", "renew", lease)
	must.Eq(t, http.StatusOK, c.status(key))
	begin := time.Now()
	s.ok("lease", "revoke", "-sync", lease)
	must.Eq(t, http.StatusUnauthorized, c.status(key))
	t.Logf("401 %s after the command began", time.Since(begin).Round(time.Millisecond))

	t.Run("leases of a mount end with it", func(t *testing.T) {
		data, _ := s.data("read", "soulbox/creds/dev")
		key, _ := data["api_key"].(string)
		must.Eq(t, http.StatusOK, c.status(key))
		s.ok("secrets", "disable", "soulbox")
		must.Eq(t, http.StatusUnauthorized, c.status(key))
	})
}

func TestEngine_rotateRootReplacesTheKey(t *testing.T) {
	s := startVault(t)
	c := startControl(t, nil)
	made, err := c.client.CreateKey(t.Context(), api.NewKey{Name: "for vault", Roles: []string{"admin"}, Everywhere: true})
	must.NoError(t, err)
	enabled(t, s, c.Address(), made.Secret)
	before, _ := s.data("read", "soulbox/config")
	s.ok("write", "-f", "soulbox/config/rotate-root")
	after, _ := s.data("read", "soulbox/config")
	must.NotEq(t, before["api_key_id"], after["api_key_id"])
	must.Eq(t, http.StatusUnauthorized, c.status(made.Secret))
	data, lease := s.data("read", "soulbox/creds/dev")
	key, _ := data["api_key"].(string)
	must.Eq(t, http.StatusOK, c.status(key))
	s.ok("lease", "revoke", "-sync", lease)
}

func TestEngine_jwksNeedsNoToken(t *testing.T) {
	s := startVault(t)
	enabled(t, s, "http://127.0.0.1:1", "sb_0123456789abcdef_"+strings.Repeat("0", 64))
	resp, err := http.Get(s.Config.Address() + "/v1/soulbox/jwks")
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, http.StatusOK, resp.StatusCode)
	must.Eq(t, "application/json", resp.Header.Get("Content-Type"))
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	must.NoError(t, json.NewDecoder(resp.Body).Decode(&set))
	must.Len(t, 1, set.Keys)
	must.Eq(t, any("OKP"), set.Keys[0]["kty"])
	_, private := set.Keys[0]["d"]
	must.False(t, private)
	data, _ := s.data("read", "soulbox/token/dev")
	token, _ := data["token"].(string)
	must.Eq(t, 2, strings.Count(token, "."))
}
