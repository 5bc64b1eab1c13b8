// Package soulboxsecrets is Vault's secrets engine for SoulBox: API keys as leases, short-lived tokens, and the keys that sign links.
//
// It owns what is below its mount in Vault's storage, and the API keys that it has made in the control service until it has taken
// them back. It knows the control service by its public API only, and keeps no state in the package: one process serves many mounts.
package soulboxsecrets

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/soulbox-dev/soulbox/control/api/version"
)

// operationPrefix begins the names of the engine's operations in Vault's OpenAPI document.
const operationPrefix = "soulbox"

// walMinAge is how old an entry of the write-ahead log is before Vault may roll it back, a Go duration: longer than the slowest
// creation of a key. Tests set a shorter one with the linker.
var walMinAge = "5m"

// dialer makes a client of the control service that a configuration names.
type dialer func(*config) (service, error)

// backend is one mount of the engine.
type backend struct {
	*framework.Backend
	dial dialer
	now  func() time.Time

	// write is held by whoever reads an entry of the storage, changes it and writes it back.
	write sync.Mutex

	mu     sync.Mutex
	client service // of the configuration; nil: to be made
}

// Factory makes the backend of a mount. Vault also calls it, with an empty configuration, to find out what kind of plugin this is.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	if conf == nil {
		return nil, errors.New("the backend's configuration is missing")
	}
	b, err := newBackend(dialService)
	if err != nil {
		return nil, err
	}
	if err := b.Setup(ctx, conf); err != nil {
		return nil, err
	}
	return b, nil
}

func newBackend(dial dialer) (*backend, error) {
	minAge, err := time.ParseDuration(walMinAge)
	if err != nil {
		return nil, fmt.Errorf("minimum age of the write-ahead log: %w", err)
	}
	b := &backend{dial: dial, now: time.Now}
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		RunningVersion: "v" + version.Version, // Vault compares it with the version that it was told, which it spells so
		Help:           backendHelp,
		PathsSpecial: &logical.Paths{
			Unauthenticated: []string{"jwks"},
			LocalStorage:    []string{framework.WALPrefix},
			SealWrapStorage: []string{configKey, tokenKeysKey, urlKeyPrefix},
		},
		// What is special comes before what is general.
		Paths: framework.PathAppend(
			b.configPaths(), b.rolePaths(), b.credsPaths(), b.tokenPaths(), b.tokenKeyPaths(), b.urlKeyUsePaths(), b.urlKeyPaths(),
		),
		Secrets:           []*framework.Secret{b.apiKeySecret()},
		InitializeFunc:    b.initialize,
		PeriodicFunc:      b.periodic,
		Invalidate:        b.invalidate,
		Clean:             func(context.Context) { b.reset() },
		WALRollback:       b.rollback,
		WALRollbackMinAge: minAge,
	}
	return b, nil
}

// writes reports whether this instance of Vault may write to the mount's storage.
func (b *backend) writes() bool {
	return b.WriteSafeReplicationState() && !b.System().ReplicationState().HasState(consts.ReplicationPerformanceStandby)
}

// initialize makes the first key for tokens, so that its public half is there before the first token.
func (b *backend) initialize(ctx context.Context, req *logical.InitializationRequest) error {
	if !b.writes() {
		return nil
	}
	b.write.Lock()
	defer b.write.Unlock()
	_, err := b.tokenKeys(ctx, req.Storage, true)
	return err
}

// periodic rotates what is due. Vault calls it about once a minute.
func (b *backend) periodic(ctx context.Context, req *logical.Request) error {
	if !b.writes() {
		return nil
	}
	return errors.Join(b.rotateTokenKeys(ctx, req.Storage), b.rotateURLKeys(ctx, req.Storage))
}

// invalidate forgets what was made of an entry that another instance of Vault has changed.
func (b *backend) invalidate(_ context.Context, key string) {
	if key == configKey {
		b.reset()
	}
}

func (b *backend) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil {
		b.client.Close()
		b.client = nil
	}
}

// service returns the client of the control service, or an error for the user where none is configured.
func (b *backend) service(ctx context.Context, s logical.Storage) (service, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client != nil {
		return b.client, nil
	}
	cfg, err := readConfig(ctx, s)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return nil, errUnconfigured
	}
	c, err := b.dial(cfg)
	if err != nil {
		return nil, fmt.Errorf("client of the control service: %w", err)
	}
	b.client = c
	return c, nil
}

var errUnconfigured = errors.New("the engine is not configured: write address and api_key to config first")

// display names an operation in Vault's OpenAPI document.
func display(verb, suffix string) *framework.DisplayAttributes {
	return &framework.DisplayAttributes{OperationPrefix: operationPrefix, OperationVerb: verb, OperationSuffix: suffix}
}

// operation is a handler with its names.
func operation(f framework.OperationFunc, summary, verb, suffix string) *framework.PathOperation {
	return &framework.PathOperation{Callback: f, Summary: summary, DisplayAttrs: display(verb, suffix)}
}

// forwarded is an operation that writes, and so is done by the active instance.
func forwarded(f framework.OperationFunc, summary, verb, suffix string) *framework.PathOperation {
	op := operation(f, summary, verb, suffix)
	op.ForwardPerformanceSecondary, op.ForwardPerformanceStandby = true, true
	return op
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

const backendHelp = `
The SoulBox secrets engine makes credentials for SoulBox's control service.

Write "config" once, then a role with "roles/NAME". After that

  creds/NAME   makes an API key, as a lease: revoking the lease takes the key back at once.
  token/NAME   makes a short-lived token (JWT), which nobody has to take back. "jwks" has the
               public keys that it is checked with.
  url-keys/    holds the versions of the keys that sign links to files.
`
