package soulboxsecrets

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// Lives of tokens. They cannot be taken back one by one, so they are short.
const (
	defaultTokenTTL = 15 * time.Minute
	maxTokenTTL     = time.Hour
	tokenBackdate   = 30 * time.Second // for machines whose clocks disagree
)

// tokenClaims is what a token says beside the registered claims.
type tokenClaims struct {
	Tenant string   `json:"tenant"`
	Roles  []string `json:"roles"`
	Role   string   `json:"vault_role"`
	Entity string   `json:"vault_entity,omitempty"` // of Vault, who has asked
}

func (b *backend) tokenPaths() []*framework.Path {
	handler := operation(b.makeToken, "Make a short-lived token.", "generate", "token")
	return []*framework.Path{{
		Pattern:      "token/" + framework.GenericNameRegex("name"),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeLowerCaseString, Required: true, Description: "Name of the role."},
			"ttl":  {Type: framework.TypeDurationSecond, Description: "Life of the token, an hour at most. Default: the role's, else 15m."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: handler, logical.UpdateOperation: handler,
		},
		HelpSynopsis: "Make a short-lived token (JWT) with a role's rights.",
		HelpDescription: "The token is signed here, without a call of the control service, which checks it with the keys of jwks. It is no lease: it ends by " +
			"itself, or with the version of the key that has signed it.",
	}}
}

func (b *backend) makeToken(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	r, refusal, err := b.allowed(ctx, req.Storage, name, kindToken)
	if err != nil || refusal != nil {
		return refusal, err
	}
	ttl, warning := tokenTTL(requested(d), r)
	cfg, err := readConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return logical.ErrorResponse(errUnconfigured.Error()), nil
	}
	keys, err := b.tokenKeys(ctx, req.Storage, false)
	if err != nil {
		return nil, err
	}
	if keys == nil { // made when the engine was enabled, so the storage has lost it
		return nil, fmt.Errorf("there is no key for tokens: write to token-keys/rotate")
	}
	now := b.now()
	key := keys.signer(now)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: key.ed25519(), KeyID: key.kid()}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("sign a token: %w", err)
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails on Linux
	expires := now.Add(ttl)
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: cfg.Issuer, Subject: "vault:" + name, Audience: jwt.Audience{cfg.Audience}, ID: hex.EncodeToString(id[:]),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-tokenBackdate)), Expiry: jwt.NewNumericDate(expires),
	}).Claims(tokenClaims{Tenant: r.Tenant, Roles: r.Roles, Role: name, Entity: req.EntityID}).Serialize()
	if err != nil {
		return nil, fmt.Errorf("sign a token: %w", err)
	}
	resp := &logical.Response{Data: map[string]any{
		"token": token, "tenant": r.Tenant, "roles": r.Roles, "ttl": seconds(ttl), "expires_at": expires.UTC().Format(time.RFC3339),
		"key_version": key.Version,
	}}
	if warning != "" {
		resp.AddWarning(warning)
	}
	return resp, nil
}

// tokenTTL returns the life of a token, and a warning where it is less than what was asked for.
func tokenTTL(asked time.Duration, r *role) (time.Duration, string) {
	limit := maxTokenTTL
	if r.MaxTTL > 0 && r.MaxTTL < limit {
		limit = r.MaxTTL
	}
	ttl := defaultTokenTTL
	switch {
	case asked > 0:
		ttl = asked
	case r.TTL > 0:
		ttl = r.TTL
	}
	if ttl <= limit {
		return ttl, ""
	}
	if asked == 0 { // the role's own ttl is for leases too
		return limit, ""
	}
	return limit, fmt.Sprintf("a token of this role lives %s at most, not %s", limit, ttl)
}
