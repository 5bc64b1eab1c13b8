package soulboxsecrets

import (
	"context"
	"fmt"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

func (b *backend) rotateRoot(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	cfg, err := readConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return logical.ErrorResponse(errUnconfigured.Error()), nil
	}
	client, err := b.service(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	old, err := client.Self(call)
	if err != nil {
		return nil, fmt.Errorf("the engine's own key: %w", err)
	}
	want := apiKey{Tenant: old.Tenant, Name: keyName("root"), Roles: old.Roles, Everywhere: old.Everywhere}
	wal, err := framework.PutWAL(ctx, req.Storage, walRoot, walEntry{Tenant: want.Tenant, Name: want.Name, Old: old.ID})
	if err != nil {
		return nil, fmt.Errorf("write-ahead log: %w", err)
	}
	made, err := client.CreateKey(call, want)
	if err != nil {
		if refused(err) {
			return logical.ErrorResponse(err.Error()), b.forget(ctx, req.Storage, wal)
		}
		return nil, err
	}
	cfg.APIKey = made.Secret
	if err := writeEntry(ctx, req.Storage, configKey, cfg); err != nil {
		return nil, err // the entry in the log takes the new key away
	}
	b.reset()
	next, err := b.service(ctx, req.Storage)
	if err == nil {
		err = next.DeleteKey(call, old.Tenant, old.ID)
	}
	if err != nil {
		// The new key is in use. The entry stays, and takes the old one away as soon as that works.
		resp := &logical.Response{Data: map[string]any{"api_key_id": made.ID}}
		resp.AddWarning(fmt.Sprintf("the old key %s is not deleted yet, Vault tries again: %v", old.ID, err))
		return resp, nil
	}
	return &logical.Response{Data: map[string]any{"api_key_id": made.ID}}, b.forget(ctx, req.Storage, wal)
}
