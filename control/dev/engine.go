package dev

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

// The keys that are in the cluster's Vault, and the mount of SoulBox's secrets engine.
const (
	EngineMount = "soulbox"

	LinkKey     vault.KeyPath = EngineMount + "/url-keys/links"
	SnapshotKey vault.KeyPath = "soulbox-transit/keys/snapshots"
	AuditKey    vault.KeyPath = "soulbox-transit/keys/audit"
)

// EngineRole is the role of the engine that a cluster has from the start.
const EngineRole = "dev"

// copyEngine puts the plugin of Vault into a folder of its own, which Vault registers at its start, and returns the folder. Vault runs
// nothing that lies behind a symbolic link.
func (c *Cluster) copyEngine() (dir string, err error) {
	if c.cfg.Engine == "" {
		return "", nil
	}
	dir = filepath.Join(c.cfg.Dir, "vault-plugins")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", err
	}
	from, err := os.Open(c.cfg.Engine)
	if err != nil {
		return "", err
	}
	defer from.Close()
	path := filepath.Join(dir, vault.EngineType)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(to, from)
	return dir, errors.Join(err, to.Close())
}

// prepareKeys makes the keys that are in Vault.
func (c *Cluster) prepareKeys(ctx context.Context) error {
	for path, use := range map[vault.KeyPath]vault.KeyUse{LinkKey: vault.UseRing, SnapshotKey: vault.UseRing, AuditKey: vault.UseSigner} {
		if path == LinkKey && c.cfg.Engine == "" {
			continue
		}
		if err := c.issuer.PrepareKey(ctx, path, use); err != nil {
			return err
		}
	}
	return nil
}

// Vault returns a client of the cluster's Vault, as root.
func (c *Cluster) Vault() *vault.Client { return c.issuer.Client }

// HasEngine reports whether the cluster's Vault has SoulBox's secrets engine.
func (c *Cluster) HasEngine() bool { return c.cfg.Engine != "" }

// ConfigureEngine tells the engine where the control service is, and makes the role EngineRole. The key becomes the engine's.
func (c *Cluster) ConfigureEngine(ctx context.Context, address, apiKey, tenant string) error {
	if err := c.Vault().ConfigureEngine(ctx, vault.Engine{Mount: EngineMount, Address: address, APIKey: apiKey}); err != nil {
		return err
	}
	return c.Vault().PutRole(ctx, EngineMount, vault.Role{
		Name: EngineRole, Tenant: tenant, Roles: []string{"developer"}, TTL: "1h", MaxTTL: "24h",
	})
}
