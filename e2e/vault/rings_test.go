package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

const box = api.SandboxID("iabcdefghij0123456789")

func TestRings_keepContract(t *testing.T) {
	s := startVault(t)
	root := s.keys()
	for _, path := range []vault.KeyPath{"soulbox/url-keys/links", "soulbox-transit/keys/snapshots"} {
		t.Run(string(path), func(t *testing.T) {
			must.NoError(t, root.PrepareKey(t.Context(), path, vault.UseRing))
			must.NoError(t, root.PrepareKey(t.Context(), path, vault.UseRing), must.Sprint("a second time"))
			keystest.Ring(t, func() keys.Ring {
				r, err := root.OpenRing(t.Context(), vault.RingConfig{Key: path})
				must.NoError(t, err)
				return r
			})
		})
	}
}

func TestSigner_keepsContract(t *testing.T) {
	s := startVault(t)
	root := s.keys()
	const path = vault.KeyPath("soulbox-transit/keys/audit")
	must.NoError(t, root.PrepareKey(t.Context(), path, vault.UseSigner))
	open := func(t *testing.T) *vault.Signer {
		signer, err := root.Signer(path)
		must.NoError(t, err)
		return signer
	}
	keystest.Signer(t, keystest.SignerUnderTest{
		Open:   func(t *testing.T) audit.Signer { return open(t) },
		Rotate: func(t *testing.T) { must.NoError(t, open(t).Rotate(t.Context())) },
	})
}

// limited returns a client with the rights of a policy only.
func (s *stand) limited(policy string) *vault.Client {
	s.t.Helper()
	c := s.client()
	must.NoError(s.t, c.Sys().PutPolicy("limited", policy))
	secret, err := c.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"limited"}, NoParent: true, TTL: "1h"})
	must.NoError(s.t, err)
	out, err := vault.Connect(vault.Config{Address: s.Config.Address(), Token: secret.Auth.ClientToken})
	must.NoError(s.t, err)
	s.t.Cleanup(out.Close)
	return out
}

func TestKeyPolicy_isEnoughAndNoMore(t *testing.T) {
	s := startVault(t)
	root := s.keys()
	for path, use := range map[vault.KeyPath]vault.KeyUse{
		"soulbox/url-keys/links": vault.UseRing, "soulbox-transit/keys/snapshots": vault.UseRing, "soulbox-transit/keys/audit": vault.UseSigner,
	} {
		must.NoError(t, root.PrepareKey(t.Context(), path, use))
		policy, err := vault.KeyPolicy(path, use)
		must.NoError(t, err)
		c := s.limited(policy)
		if use == vault.UseSigner {
			signer, err := c.Signer(path)
			must.NoError(t, err)
			_, err = signer.Sign(t.Context(), [][]byte{[]byte("x")})
			must.NoError(t, err)
			_, err = signer.PublicKeys(t.Context())
			must.NoError(t, err)
			must.ErrorContains(t, signer.Rotate(t.Context()), "permission denied")
			continue
		}
		r, err := c.OpenRing(t.Context(), vault.RingConfig{Key: path})
		must.NoError(t, err)
		_, err = r.Rotate(t.Context())
		must.ErrorContains(t, err, "permission denied")
		_, err = c.OpenRing(t.Context(), vault.RingConfig{Key: "soulbox/url-keys/other"})
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	}
}

// withLinks makes a server take the keys of links from Vault, and refresh its copy often.
func withLinks(t *testing.T, c *vault.Client, rings *[]*vault.Ring) func(*service.Config) {
	return func(cfg *service.Config) {
		r, err := c.OpenRing(t.Context(), vault.RingConfig{Key: "soulbox/url-keys/links", Refresh: 100 * time.Millisecond})
		must.NoError(t, err)
		cfg.LinkKeys = r
		cfg.Background = append(cfg.Background, r.Run)
		if rings != nil {
			*rings = append(*rings, r)
		}
	}
}

func TestLinks_dieWithTheVersionOfTheirKeyOnEveryServer(t *testing.T) {
	s := startVault(t)
	root := s.keys()
	must.NoError(t, root.PrepareKey(t.Context(), "soulbox/url-keys/links", vault.UseRing))
	servers := []*control{startControl(t, withLinks(t, root, nil)), startControl(t, withLinks(t, root, nil))}
	data, _ := s.data("write", "soulbox/url-keys/links/sign", "sandbox="+string(box), "path=/etc/hostname", "ttl=10m")
	query, _ := data["query"].(string)
	for _, c := range servers {
		// The link is good; the sandbox is not there.
		must.NotEq(t, http.StatusForbidden, c.open(query))
		must.Eq(t, http.StatusForbidden, c.open(strings.Replace(query, "hostname", "shadow", 1)))
	}
	s.ok("write", "-f", "soulbox/url-keys/links/rotate")
	agenttest.Eventually(t, 10*time.Second, func() error {
		fresh, _ := s.data("write", "soulbox/url-keys/links/sign", "sandbox="+string(box), "path=/x")
		q, _ := fresh["query"].(string)
		for i, c := range servers {
			if got := c.open(q); got == http.StatusForbidden {
				return fmt.Errorf("server %d does not know the new version yet", i)
			}
			must.NotEq(t, http.StatusForbidden, c.open(query), must.Sprint("the old version is good until it is revoked"))
		}
		return nil
	})
	begin := time.Now()
	s.ok("write", "soulbox/url-keys/links", "minimum_version=2")
	agenttest.Eventually(t, 10*time.Second, func() error {
		for i, c := range servers {
			if got := c.open(query); got != http.StatusForbidden {
				return fmt.Errorf("server %d answers %d", i, got)
			}
		}
		return nil
	})
	t.Logf("refused everywhere %s after the command began, with a refresh every 100 ms", time.Since(begin).Round(time.Millisecond))
	verdict, _ := s.data("write", "soulbox/url-keys/links/verify", "query="+query)
	must.Eq(t, any(false), verdict["valid"])
}

var unsealKeyLine = regexp.MustCompile(`Unseal Key: (\S+)`)

// unsealKeyOf reads the key that Vault's dev mode writes into its log, some time after it serves.
func unsealKeyOf(t *testing.T, s *stand) string {
	t.Helper()
	var found [][]byte
	agenttest.Eventually(t, 30*time.Second, func() error {
		log, err := os.ReadFile(s.Log())
		if found = unsealKeyLine.FindSubmatch(log); err == nil && len(found) != 2 {
			err = errors.New("the log does not have the unseal key yet")
		}
		return err
	})
	return string(found[1])
}

func TestLinks_goOnWhileVaultIsSealed(t *testing.T) {
	s := startVault(t)
	root := s.keys()
	must.NoError(t, root.PrepareKey(t.Context(), "soulbox/url-keys/links", vault.UseRing))
	var rings []*vault.Ring
	c := startControl(t, withLinks(t, root, &rings))
	unsealKey := unsealKeyOf(t, s)

	links := edge.Links{Ring: rings[0]}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var good, bad atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				q, _, err := links.Query(edge.Link{Sandbox: box, Operation: "read", Path: "/x", Expires: time.Now().Add(time.Minute)})
				if err == nil && c.open(q.Encode()) != http.StatusForbidden {
					good.Add(1)
				} else {
					bad.Add(1)
				}
			}
		})
	}
	progress := func(why string) {
		t.Helper()
		from := good.Load()
		agenttest.Eventually(t, 10*time.Second, func() error {
			if good.Load() < from+50 {
				return fmt.Errorf("%s: no link is made and served", why)
			}
			return nil
		})
	}
	progress("before")
	s.ok("operator", "seal")
	progress("sealed")
	_, err := rings[0].Rotate(t.Context())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint("new trust fails closed"))
	_, err = root.Issuer().Issue(t.Context(), keys.Request{Identity: keys.Server("s")})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	s.ok("operator", "unseal", unsealKey)
	agenttest.Eventually(t, 30*time.Second, func() error {
		_, err := rings[0].Rotate(t.Context())
		return err
	})
	progress("unsealed")
	cancel()
	wg.Wait()
	t.Logf("%d links made and served, %d failed", good.Load(), bad.Load())
	must.Eq(t, 0, bad.Load())
}

// The token that Nomad or Vault's agent keeps in a file may end, be cut off, or be gone: links go on with the copy, new trust fails closed, and the next
// token that is written there is taken, without a restart.
func TestLinks_goOnWhenTheTokenHasEnded(t *testing.T) {
	s := startVault(t)
	must.NoError(t, s.keys().PrepareKey(t.Context(), "soulbox/url-keys/links", vault.UseRing))
	admin := s.client()
	must.NoError(t, admin.Sys().PutPolicy("links", `path "soulbox/url-keys/*" { capabilities = ["create", "read", "update"] }`))
	fresh := func() string {
		secret, err := admin.Auth().Token().Create(&vaultapi.TokenCreateRequest{Policies: []string{"links"}, NoParent: true, TTL: "1h"})
		must.NoError(t, err)
		return secret.Auth.ClientToken
	}
	file := filepath.Join(t.TempDir(), "token")
	first := fresh()
	must.NoError(t, os.WriteFile(file, []byte(first), 0o600))
	c, err := vault.Connect(vault.Config{Address: s.Config.Address(), TokenFile: file})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	ring, err := c.OpenRing(t.Context(), vault.RingConfig{Key: "soulbox/url-keys/links"})
	must.NoError(t, err)
	links := edge.Links{Ring: ring}
	for name, ends := range map[string]func() error{
		"revoked":     func() error { return admin.Auth().Token().RevokeTree(first) },
		"cut off":     func() error { return os.WriteFile(file, []byte(first[:len(first)/2]), 0o600) },
		"empty":       func() error { return os.WriteFile(file, nil, 0o600) },
		"not there":   func() error { return os.Remove(file) },
		"not a token": func() error { return os.WriteFile(file, []byte("\x00\n\r\n"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			must.NoError(t, ends())
			_, _, err := links.Query(edge.Link{Sandbox: box, Operation: "read", Path: "/x", Expires: time.Now().Add(time.Minute)})
			must.NoError(t, err, must.Sprint("the copy serves"))
			_, err = ring.Rotate(t.Context())
			must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
			must.StrNotContains(t, err.Error(), first[:len(first)/2], must.Sprint("no token in an error"))
			t.Logf("%s: %v", name, err)
			first = fresh()
			must.NoError(t, os.WriteFile(file, []byte(first+"\n"), 0o600))
			_, err = ring.Rotate(t.Context())
			must.NoError(t, err)
		})
	}
}
