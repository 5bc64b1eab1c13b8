package vault_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

func issuer(t *testing.T, cfg vault.Config) *vault.Issuer {
	t.Helper()
	i, err := vault.New(cfg)
	must.NoError(t, err)
	t.Cleanup(i.Close)
	return i
}

func TestIssuer_keepsContract(t *testing.T) {
	v := agenttest.Vault(t, agent.VaultConfig{})
	n := 0
	keystest.Run(t, func(t *testing.T) keys.Issuer {
		n++
		i := issuer(t, vault.Config{Address: v.Config.Address(), Token: v.Config.RootToken, Mount: fmt.Sprintf("pki-%d", n)})
		must.NoError(t, i.Prepare(t.Context()))
		must.NoError(t, i.Prepare(t.Context()), must.Sprint("a second time"))
		return i
	})
}

func TestIssuer_needsNoMoreThanItsPolicy(t *testing.T) {
	v := agenttest.Vault(t, agent.VaultConfig{})
	root := issuer(t, vault.Config{Address: v.Config.Address(), Token: v.Config.RootToken})
	must.NoError(t, root.Prepare(t.Context()))

	conf := vaultapi.DefaultConfig()
	conf.Address = v.Config.Address()
	client, err := vaultapi.NewClient(conf)
	must.NoError(t, err)
	client.SetToken(v.Config.RootToken)
	must.NoError(t, client.Sys().PutPolicy("node", vault.Policy("", keys.RoleNode)))
	secret, err := client.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"node"}, NoParent: true})
	must.NoError(t, err)

	file := filepath.Join(t.TempDir(), "token")
	i := issuer(t, vault.Config{Address: v.Config.Address(), TokenFile: file})
	_, err = i.Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint("without its token"))
	must.NoError(t, os.WriteFile(file, []byte(secret.Auth.ClientToken+"\n"), 0o600))
	_, err = i.Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
	must.NoError(t, err)
	_, err = i.Issue(t.Context(), keys.Request{Identity: keys.Server("s")})
	must.ErrorContains(t, err, "permission denied")
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
}

func TestIssuer_failsClosedWithoutVault(t *testing.T) {
	v := agenttest.Vault(t, agent.VaultConfig{})
	i := issuer(t, vault.Config{Address: v.Config.Address(), Token: v.Config.RootToken})
	must.NoError(t, i.Prepare(t.Context()))

	conf := vaultapi.DefaultConfig()
	conf.Address = v.Config.Address()
	client, err := vaultapi.NewClient(conf)
	must.NoError(t, err)
	client.SetToken(v.Config.RootToken)
	must.NoError(t, client.Sys().Seal())
	begin := time.Now()
	_, err = i.Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.ErrorContains(t, err, "sealed")
	must.Less(t, 10*time.Second, time.Since(begin))

	must.NoError(t, v.Signal(syscall.SIGKILL))
	<-v.Done()
	_, err = i.Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.ErrorContains(t, err, "connection refused")
}
