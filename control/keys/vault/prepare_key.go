package vault

import (
	"context"
	"fmt"

	vaultapi "github.com/hashicorp/vault/api"
)

// EngineType is the name under which the engine of SoulBox is registered in Vault's catalog of plugins.
const EngineType = "vault-plugin-secrets-soulbox"

// KeyUse is what a key is for.
type KeyUse string

// The uses.
const (
	UseRing   KeyUse = "ring"   // the copies of a Ring
	UseSigner KeyUse = "signer" // a Signer
)

// PrepareKey mounts a key's engine and makes the key, each where it is missing. It needs a token that may do that; what uses the key
// needs no more than KeyPolicy says. The engine of SoulBox must be registered before.
func (c *Client) PrepareKey(ctx context.Context, p KeyPath, use KeyUse) error {
	if err := c.prepareKey(ctx, p, use); err != nil {
		return fmt.Errorf("prepare vault's key %s: %w", p, err)
	}
	return nil
}

func (c *Client) prepareKey(ctx context.Context, p KeyPath, use KeyUse) error {
	mount, kind, name, err := p.split()
	if err != nil {
		return err
	}
	engine := "transit"
	if kind == "url-keys" {
		engine = EngineType
	}
	err = c.call(ctx, issueTimeout, func(ctx context.Context, v *vaultapi.Client) error {
		mounts, err := v.Sys().ListMountsWithContext(ctx)
		if err != nil || mounts[mount+"/"] != nil {
			return err
		}
		return v.Sys().MountWithContext(ctx, mount, &vaultapi.MountInput{Type: engine, Description: "keys of SoulBox"})
	})
	if err != nil {
		return err
	}
	settings := map[string]any{} // which make nothing new where the key exists
	switch {
	case use == UseSigner:
		if err := p.CheckSigner(); err != nil {
			return err
		}
		settings = map[string]any{"type": "ed25519"}
	case kind == "keys":
		settings = map[string]any{"type": "hmac", "key_size": secretLen, "exportable": true}
	}
	_, err = c.write(ctx, mount+"/"+kind+"/"+name, settings)
	return err
}

// KeyPolicy returns the policy, in HCL, that a token needs for a use of a key.
func KeyPolicy(p KeyPath, use KeyUse) (string, error) {
	mount, kind, name, err := p.split()
	if err != nil {
		return "", err
	}
	rule := func(path, capability string) string {
		return fmt.Sprintf("path %q {\n  capabilities = [%q]\n}\n", mount+"/"+path, capability)
	}
	switch {
	case use == UseSigner:
		return rule("sign/"+name, "update") + rule("keys/"+name, "read"), p.CheckSigner()
	case kind == "url-keys":
		return rule("url-keys/"+name+"/export", "read"), nil
	default:
		return rule("export/hmac-key/"+name, "read"), nil
	}
}
