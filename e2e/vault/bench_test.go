package vault

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

// each returns the median of n calls, in microseconds. Calls too short for the clock are made several at a time.
func each(b *testing.B, n, at int, f func() error) float64 {
	b.Helper()
	var took []time.Duration
	for range n {
		begin := time.Now()
		for range at {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
		took = append(took, time.Since(begin)/time.Duration(at))
	}
	slices.Sort(took)
	return float64(took[n/2].Nanoseconds()) / 1000
}

// BenchmarkLink compares the check of a link with a key in memory and the same HMAC made by Vault.
func BenchmarkLink(b *testing.B) {
	v := agenttest.Vault(b, agent.VaultConfig{})
	c, err := vault.Connect(vault.Config{Address: v.Config.Address(), Token: v.Config.RootToken})
	must.NoError(b, err)
	defer c.Close()
	const key = vault.KeyPath("soulbox-transit/keys/links")
	must.NoError(b, c.PrepareKey(b.Context(), key, vault.UseRing))
	conf := vaultapi.DefaultConfig()
	conf.Address = v.Config.Address()
	root, err := vaultapi.NewClient(conf)
	must.NoError(b, err)
	root.SetToken(v.Config.RootToken)

	ring, err := local.OpenRing(filepath.Join(b.TempDir(), "ring.json"))
	must.NoError(b, err)
	links := edge.Links{Ring: ring}
	link := api.SignedLink{Sandbox: box, Operation: "read", Path: "/home/user/result.csv", Expires: time.Now().Add(time.Hour)}
	q, _, err := links.Query(link)
	must.NoError(b, err)
	req := httptest.NewRequest("GET", "/files?"+q.Encode(), nil)
	message := link.Canonical()
	current, err := ring.Current()
	must.NoError(b, err)

	n := max(b.N, 20)
	floor := each(b, n, 200, func() error {
		m := hmac.New(sha256.New, current.Secret)
		m.Write(message)
		_ = m.Sum(nil)
		return nil
	})
	here := each(b, n, 200, func() error { _, err := links.Verify(req); return err })
	there := each(b, n, 1, func() error {
		_, err := root.Logical().WriteWithContext(b.Context(), "soulbox-transit/hmac/links", map[string]any{"input": base64.StdEncoding.EncodeToString(message)})
		return err
	})
	b.ReportMetric(floor, "floor-µs")
	b.ReportMetric(here, "local-µs")
	b.ReportMetric(there, "vault-µs")
}
