package agent

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
)

// Vault is a Vault server in dev mode: unsealed, everything in memory, with its UI.
type Vault struct {
	*Process
	Config VaultConfig // with the port and the token that it got
}

// VaultConfig says how to run Vault.
type VaultConfig struct {
	Binary    string
	Dir       string // for its log
	HTTP      int    // 0: a free port; the next one is taken too, for other servers of Vault, of which there are none
	RootToken string // empty: a random one
	// PluginDir is a folder, reached through no symbolic link, whose programs are registered as plugins. Empty: none.
	PluginDir string
}

// Address returns the URL of its API and UI.
func (c VaultConfig) Address() string { return "http://" + Address(c.HTTP) }

// StartVault runs Vault and waits until it is unsealed. Its root token is passed in the environment, where other users of
// the machine do not see it. Vault writes it into its log too, which only its owner can read.
func StartVault(ctx context.Context, cfg VaultConfig) (*Vault, error) {
	if cfg.HTTP == 0 {
		var err error
		if cfg.HTTP, err = freePair(); err != nil {
			return nil, err
		}
	}
	if cfg.RootToken == "" {
		cfg.RootToken = "dev-" + rand.Text()
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	args := []string{"server", "-dev", "-dev-no-store-token", "-dev-listen-address=" + Address(cfg.HTTP), "-log-level=info"}
	if cfg.PluginDir != "" {
		args = append(args, "-dev-plugin-dir="+cfg.PluginDir)
	}
	p, err := Start(ctx, Spec{
		Name: "vault", Path: cfg.Binary, Dir: cfg.Dir, Log: filepath.Join(cfg.Dir, "vault.log"),
		Args: args,
		Env:  []string{"VAULT_DEV_ROOT_TOKEN_ID=" + cfg.RootToken, "HOME=" + cfg.Dir},
		Ready: func(ctx context.Context) error {
			// The key/value store is the last thing that dev mode mounts.
			return probe(ctx, cfg.Address()+"/v1/sys/mounts/secret", cfg.RootToken, nil)
		},
	})
	if err != nil {
		return nil, err
	}
	return &Vault{Process: p, Config: cfg}, nil
}
