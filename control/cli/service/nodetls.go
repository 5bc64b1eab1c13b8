package service

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/state"
)

// internalTLS sets up the mutual TLS with the nodes and between the servers: with certificates from Vault, or from files that
// somebody renews.
func (f File) internalTLS(ctx context.Context, env func(string) string, cfg *Config) error {
	var current func() *keys.Certificate
	switch {
	case f.Vault != nil:
		keeper, err := f.keeper(ctx, env, cfg)
		if err != nil {
			return fmt.Errorf("vault: %w", err)
		}
		cfg.Background = append(cfg.Background, keeper.Run)
		current = keeper.Certificate
	case f.Client != nil:
		files := &certificateFiles{ca: f.Client.CAFile, cert: f.Client.CertFile, key: f.Client.KeyFile}
		if err := files.load(); err != nil {
			return fmt.Errorf("node_tls: %w", err)
		}
		current = files.get
	default:
		return nil
	}
	cfg.NodeTLS = Renewing(func(n health.Node) (*tls.Config, error) { return current().ClientTLS(keys.Node(n.ID)), nil })
	if f.Raft != nil {
		peer := keys.Identity{Role: keys.RoleServer}
		cfg.RaftTLS = &state.TLS{
			Server: func() (*tls.Config, error) { return current().ServerTLS(peer), nil },
			Client: func() (*tls.Config, error) { return current().ClientTLS(peer), nil },
			Name:   keys.NameOf, // its role is checked by the two above
		}
	}
	return nil
}

// keeper gets the first certificate from Vault, and copies of the keys that are there.
func (f File) keeper(ctx context.Context, env func(string) string, cfg *Config) (*keys.Keeper, error) {
	v := f.Vault
	log := cfg.Logger.Named("keys")
	client, err := vault.Connect(vault.Config{
		Address: v.Address, Namespace: v.Namespace, Mount: v.Mount, Token: env("VAULT_TOKEN"), TokenFile: v.TokenFile, CACert: v.CAFile, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	cfg.Closers = append(cfg.Closers, func() error { client.Close(); return nil })
	cfg.Background = append(cfg.Background, client.Run)
	if err := VaultKeys(ctx, client, VaultKeyPaths{
		Links: vault.KeyPath(v.LinkKey), Snapshots: vault.KeyPath(v.SnapshotKey), Secrets: vault.KeyPath(v.SecretKey), Audit: vault.KeyPath(v.AuditKey),
	}, cfg); err != nil {
		return nil, err
	}
	name := "server"
	if f.Raft != nil {
		name = f.Raft.ServerID
	}
	return keys.Keep(ctx, client.Issuer(), keys.Request{Identity: keys.Server(name)}, "", log)
}

// VaultKeyPaths says which keys are in Vault. An empty one is not.
type VaultKeyPaths struct {
	Links, Snapshots, Secrets, Audit vault.KeyPath
}

// VaultKeys makes the rings of keys that are in Vault, and has them refreshed, and the signer of the audit log.
func VaultKeys(ctx context.Context, client *vault.Client, paths VaultKeyPaths, cfg *Config) error {
	for _, k := range []struct {
		path vault.KeyPath
		to   *keys.Ring
	}{{paths.Links, &cfg.LinkKeys}, {paths.Snapshots, &cfg.SnapshotKeys}, {paths.Secrets, &cfg.SecretKeys}} {
		if k.path == "" {
			continue
		}
		ring, err := client.OpenRing(ctx, vault.RingConfig{Key: k.path})
		if err != nil {
			return err
		}
		*k.to = ring
		cfg.Background = append(cfg.Background, ring.Run)
	}
	if paths.Audit == "" {
		return nil
	}
	signer, err := client.Signer(paths.Audit)
	if err != nil {
		return err
	}
	if _, err := signer.PublicKeys(ctx); err != nil { // a key that is not there, or no key for signatures, is told now
		return err
	}
	cfg.Audit.Signer = signer
	return nil
}

// Renewing returns settings of clients as settings makes them, but with the certificate of the moment of each connection:
// they are asked for once and outlive the certificate that they were made with.
func Renewing(settings func(health.Node) (*tls.Config, error)) func(health.Node) (*tls.Config, error) {
	return func(n health.Node) (*tls.Config, error) {
		cfg, err := settings(n)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = nil
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			now, err := settings(n)
			if err != nil {
				return nil, err
			}
			if len(now.Certificates) == 0 {
				return nil, fmt.Errorf("no certificate for node %s", n.ID)
			}
			return &now.Certificates[0], nil
		}
		return cfg, nil
	}
}

// certificateFiles is a certificate in files.
type certificateFiles struct {
	ca, cert, key string

	mu     sync.Mutex
	loaded *keys.Certificate
}

// get returns the certificate as the files have it now. While they do not fit each other, the last one that was good stays.
func (c *certificateFiles) get() *keys.Certificate {
	_ = c.load()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.loaded
}

func (c *certificateFiles) load() error {
	var data [3][]byte
	for i, path := range []string{c.cert, c.key, c.ca} {
		var err error
		if data[i], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	id, err := named(data[0])
	if err != nil {
		return fmt.Errorf("%s: %w", c.cert, err)
	}
	loaded, err := keys.Assemble(id, data[0], data[1], data[2])
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loaded = loaded
	return nil
}

// named returns whom a certificate says that it is of. keys.Assemble checks it.
func named(chain []byte) (keys.Identity, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return keys.Identity{}, errors.New("holds no certificate in PEM form")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return keys.Identity{}, err
	}
	for _, u := range cert.URIs {
		if u.Scheme == "soulbox" {
			return keys.Identity{Role: keys.Role(u.Host), Name: strings.TrimPrefix(u.Path, "/")}, nil
		}
	}
	return keys.Identity{}, errors.New("the certificate names no soulbox://server/<name>")
}
