package vault

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

// The key that signs the audit log is in Vault. While Vault is sealed, changes go on, and their heads wait on disk for signatures.
func TestAudit_headsWaitForASealedVault(t *testing.T) {
	s := startVault(t)
	const key vault.KeyPath = "soulbox-transit/keys/audit"
	must.NoError(t, s.keys().PrepareKey(t.Context(), key, vault.UseSigner))
	policy, err := vault.KeyPolicy(key, vault.UseSigner)
	must.NoError(t, err)
	limited := s.limited(policy)
	dir := t.TempDir()
	c := startControl(t, func(cfg *service.Config) {
		cfg.Audit = audit.Config{Dir: dir, SignEvery: 100 * time.Millisecond}
		must.NoError(t, service.VaultKeys(t.Context(), limited, service.VaultKeyPaths{Audit: key}, cfg))
	})
	unsealKey := unsealKeyOf(t, s)

	change := func(name string) {
		t.Helper()
		_, err := c.client.CreateKey(t.Context(), api.NewKey{Name: name})
		must.NoError(t, err)
	}
	signed := func() (upTo uint64, waiting int) {
		t.Helper()
		h, err := c.client.AuditState(t.Context())
		must.NoError(t, err)
		if h.Head != nil {
			upTo = h.Head.Index
		}
		return upTo, h.Waiting
	}
	until := func(what string, ok func(upTo uint64, waiting int) bool) {
		t.Helper()
		agenttest.Eventually(t, 60*time.Second, func() error {
			if upTo, waiting := signed(); !ok(upTo, waiting) {
				return fmt.Errorf("%s: signed up to %d, %d wait", what, upTo, waiting)
			}
			return nil
		})
	}
	change("before")
	until("before", func(upTo uint64, waiting int) bool { return upTo > 0 && waiting == 0 })
	s.ok("operator", "seal")
	at, _ := signed()
	for i := range 3 {
		change(fmt.Sprintf("sealed %d", i)) // is durable and answered
		until("sealed", func(_ uint64, waiting int) bool { return waiting > i })
	}
	if upTo, _ := signed(); upTo != at {
		t.Fatalf("signed up to %d by a Vault that is sealed since %d", upTo, at)
	}
	unsigned, err := audit.Verify(dir, audit.VerifyOptions{})
	must.NoError(t, err)
	must.Nil(t, unsigned.Bad, must.Sprint("the chain is whole without signatures"))
	s.ok("operator", "unseal", unsealKey)
	until("unsealed", func(upTo uint64, waiting int) bool { return upTo > at && waiting == 0 })

	// The key is rotated: what is new is of the new version, and everything verifies with the keys that the server has written down.
	s.ok("write", "-f", "soulbox-transit/keys/audit/rotate")
	change("rotated")
	agenttest.Eventually(t, 30*time.Second, func() error {
		h, err := c.client.AuditState(t.Context())
		if err != nil || h.Head == nil || h.Head.Signature == nil || h.Head.Signature.Version != 2 {
			return fmt.Errorf("head %+v, %w", h.Head, err)
		}
		return nil
	})
	report, err := audit.Verify(dir, audit.VerifyOptions{})
	must.NoError(t, err)
	must.Nil(t, report.Bad)
	_, err = os.Stat(filepath.Join(c.Core.BootstrapFile, "..", "audit-keys.json"))
	must.ErrorIs(t, err, os.ErrNotExist, must.Sprint("there is no key on this disk"))
}

func TestAudit_aKeyThatCannotSignIsToldAtTheStart(t *testing.T) {
	s := startVault(t)
	c := s.keys()
	must.NoError(t, c.PrepareKey(t.Context(), "soulbox-transit/keys/snapshots", vault.UseRing))
	for key, says := range map[vault.KeyPath]string{
		"soulbox-transit/keys/none": "none", "soulbox-transit/keys/snapshots": "not ed25519", "soulbox/url-keys/links": "url-keys",
	} {
		err := service.VaultKeys(t.Context(), c, service.VaultKeyPaths{Audit: key}, &service.Config{})
		must.ErrorContains(t, err, says)
	}
}
