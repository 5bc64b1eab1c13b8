// Package jobs runs the job files that users run, on a real Nomad, Consul and Vault that know each other by workload identity.
//
// It owns the agents that its tests start, and does nothing for a job that jobs/README.md does not tell users to do.
package jobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
)

func TestMain(m *testing.M) { binaries.Main(m) }

// stack is Nomad, Consul and Vault.
type stack struct {
	t      *testing.T
	nomad  *agent.Nomad
	consul *agent.Consul
	vault  *agent.Vault
	env    []string // for their command lines
}

func startStack(t *testing.T) *stack {
	t.Helper()
	plugins, err := filepath.EvalSymlinks(t.TempDir()) // Vault wants no link on the way
	must.NoError(t, err)
	engine, err := os.ReadFile(binaries.Path(t, vault.EngineType))
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(plugins, vault.EngineType), engine, 0o755))
	// Unix sockets must fit into 107 bytes, and the task API is one: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbjob")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	s := &stack{t: t}
	s.consul = agenttest.Consul(t, agent.ConsulConfig{Token: rand.Text()})
	s.vault = agenttest.Vault(t, agent.VaultConfig{PluginDir: plugins})
	consulAddress := strings.TrimPrefix(s.consul.Config.Address(), "http://")
	s.nomad = agenttest.Nomad(t, agent.NomadConfig{
		Dir: dir, MemoryMB: 4096, Consul: consulAddress, ConsulIdentities: true, Vault: s.vault.Config.Address(),
		Plugins: []agent.NomadPlugin{{Name: "raw_exec", Config: map[string]any{"enabled": true}}},
	})
	s.env = append(os.Environ(), "NOMAD_ADDR="+s.nomad.Config.Address(), "VAULT_ADDR="+s.vault.Config.Address(), "VAULT_TOKEN="+s.vault.Config.RootToken,
		"CONSUL_HTTP_ADDR="+s.consul.Config.Address(), "CONSUL_HTTP_TOKEN="+s.consul.Config.Token, "HOME="+t.TempDir())
	return s
}

// run calls a command line of the stack, and shows it in the test's log.
func (s *stack) run(stdin, program string, args ...string) string {
	s.t.Helper()
	// Not the test's own, which has ended when it cleans up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, agenttest.Binary(s.t, program), args...)
	cmd.Env, cmd.Stdin, cmd.Dir = s.env, strings.NewReader(stdin), binaries.Root()
	out, err := cmd.CombinedOutput()
	s.t.Logf("$ %s %s\n%s", program, strings.Join(args, " "), out)
	must.NoError(s.t, err)
	return string(out)
}

// told is what jobs/README.md says that a command gets.
func told(t *testing.T, command string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(binaries.Root(), "jobs", "README.md"))
	must.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "$ "+command+" <<EOF\n")
	must.True(t, found, must.Sprint(command))
	out, _, found := strings.Cut(rest, "EOF\n")
	must.True(t, found)
	return out
}

func get(t *testing.T, url string, header http.Header, out any) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must.NoError(t, err)
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %d: %s", url, resp.StatusCode, b)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

func TestControl_runsAsAJobWithTokensByItsIdentity(t *testing.T) {
	s := startStack(t)
	// What an operator does once, by jobs/README.md.
	jwks := s.nomad.Config.Address() + "/.well-known/jwks.json"
	s.run("", "nomad", "setup", "vault", "-jwks-url="+jwks, "-y")
	s.run("", "nomad", "setup", "consul", "-jwks-url="+jwks, "-y")
	root, err := vault.New(vault.Config{Address: s.vault.Config.Address(), Token: s.vault.Config.RootToken})
	must.NoError(t, err)
	t.Cleanup(root.Close)
	must.NoError(t, root.Prepare(t.Context()))
	for key, use := range map[vault.KeyPath]vault.KeyUse{
		"soulbox/url-keys/links": vault.UseRing, "soulbox-transit/keys/snapshots": vault.UseRing, "soulbox-transit/keys/audit": vault.UseSigner,
	} {
		must.NoError(t, root.PrepareKey(t.Context(), key, use))
	}
	for _, command := range []string{"vault policy write soulbox-control -", "vault write auth/jwt-nomad/role/soulbox-control -"} {
		args := strings.Fields(command)
		s.run(told(t, command), args[0], args[1:]...)
	}

	ports := agenttest.Ports(t, 1)
	data := filepath.Join(t.TempDir(), "data")
	begin := time.Now()
	s.run("", "nomad", "job", "run", "-detach", "-var=driver=raw_exec", "-var=soulbox="+binaries.Path(t, "soulbox"), "-var=data_dir="+data,
		fmt.Sprintf("-var=port=%d", ports[0]), "-var=vault_address="+s.vault.Config.Address(),
		"-var=consul_address="+strings.TrimPrefix(s.consul.Config.Address(), "http://"), "jobs/control.nomad.hcl")
	t.Cleanup(func() { s.run("", "nomad", "job", "stop", "-purge", "-yes", "-detach", "soulbox-control") })

	address := "http://" + agent.Address(ports[0])
	agenttest.Eventually(t, 90*time.Second, func() error { return get(t, address+"/v1/health", nil, nil) })
	t.Logf("it answers %s after the job was run", time.Since(begin).Round(time.Millisecond))
	key, err := os.ReadFile(filepath.Join(data, "bootstrap-key"))
	must.NoError(t, err)
	var who api.Whoami
	must.NoError(t, get(t, address+"/v1/auth/whoami", http.Header{"X-Api-Key": {strings.TrimSpace(string(key))}}, &who))
	must.Eq(t, []string{"admin"}, who.Roles)

	// Consul knows it, by the token of its service identity, and its check passes.
	agenttest.Eventually(t, 60*time.Second, func() error {
		var found []struct{ Service struct{ Port int } }
		if err := get(t, s.consul.Config.Address()+"/v1/health/service/soulbox-control?passing", nil, &found); err != nil {
			return err
		}
		if len(found) != 1 || found[0].Service.Port != ports[0] {
			return fmt.Errorf("consul knows %+v", found)
		}
		return nil
	})
	client, err := api.New(api.Config{Address: address, APIKey: strings.TrimSpace(string(key))})
	must.NoError(t, err)
	t.Cleanup(client.Close)
	_, err = client.CreateKey(t.Context(), api.NewKey{Name: "ci", Roles: []string{"viewer"}}) // a change, which is recorded
	must.NoError(t, err)

	// Its audit log is signed in Vault, so its own token may do that, and there is no key on the disk.
	agenttest.Eventually(t, 30*time.Second, func() error {
		var st api.AuditState
		err := get(t, address+"/v1/audit/head", http.Header{"X-Api-Key": {strings.TrimSpace(string(key))}}, &st)
		if err == nil && (st.Head == nil || st.Head.Signature == nil) {
			err = fmt.Errorf("%d heads wait for a signature", st.Waiting)
		}
		return err
	})
	_, err = os.Stat(filepath.Join(data, "audit-keys.json"))
	must.ErrorIs(t, err, os.ErrNotExist)

	// The token is the job's, has this one policy, and another job's identity gets none.
	tokens, err := filepath.Glob(filepath.Join(s.nomad.Config.Dir, "client", "data", "*", "*", "server", "secrets", "vault_token"))
	must.NoError(t, err)
	must.SliceNotEmpty(t, tokens)
	token, err := os.ReadFile(tokens[0])
	must.NoError(t, err)
	var own struct {
		Data struct {
			Policies []string          `json:"policies"`
			Meta     map[string]string `json:"meta"`
		} `json:"data"`
	}
	must.NoError(t, get(t, s.vault.Config.Address()+"/v1/auth/token/lookup-self", http.Header{"X-Vault-Token": {strings.TrimSpace(string(token))}}, &own))
	must.SliceContains(t, own.Data.Policies, "soulbox-control")
	must.SliceNotContains(t, own.Data.Policies, "root")
	must.Eq(t, "soulbox-control", own.Data.Meta["nomad_job_id"])
}
