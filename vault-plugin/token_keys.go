package soulboxsecrets

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	tokenKeysKey = "token-keys"

	// publishAhead is how long a new version is in jwks before it signs, so that whoever keeps a copy for less has it then.
	publishAhead = 5 * time.Minute
	// jwksMaxAge is for how long a copy of jwks may be kept.
	jwksMaxAge = time.Minute
	// keepTokenKey is how long a version is in jwks after another signs: longer than any token lives.
	keepTokenKey = publishAhead + maxTokenTTL + 10*time.Minute
)

// tokenKeys returns the keys of tokens, and makes the first where create says so. Whoever lets it create holds b.write.
func (b *backend) tokenKeys(ctx context.Context, s logical.Storage, create bool) (*ring, error) {
	var r ring
	found, err := readEntry(ctx, s, tokenKeysKey, &r)
	if err != nil {
		return nil, err
	}
	if found {
		return &r, nil
	}
	if !create {
		return nil, nil
	}
	first := newRing(b.now())
	return first, writeEntry(ctx, s, tokenKeysKey, first)
}

// signer returns the version that signs now: the newest that has been published for long enough, else the oldest.
func (r *ring) signer(now time.Time) keyVersion {
	for i := len(r.Versions) - 1; i > 0; i-- {
		if now.Sub(r.Versions[i].Created) >= publishAhead {
			return r.Versions[i]
		}
	}
	return r.Versions[0]
}

// kid names a version in tokens and in jwks. It is of the key as well: another mount has the same versions.
func (k keyVersion) kid() string {
	public, _ := k.ed25519().Public().(ed25519.PublicKey)
	sum := sha256.Sum256(public)
	return fmt.Sprintf("%d-%s", k.Version, hex.EncodeToString(sum[:8]))
}

func (k keyVersion) ed25519() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(k.Secret) }

func (b *backend) tokenKeyPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "jwks",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: operation(b.readJWKS, "The public keys of tokens, as a JSON web key set.", "read", "jwks"),
			},
			HelpSynopsis: "The public keys that tokens are checked with, as a JSON web key set.",
			HelpDescription: "Needs no token of Vault. A new key is in the set five minutes before it signs, and an old one stays until the last token " +
				"that it has signed has expired, unless it was revoked.",
		},
		{
			Pattern:      "token-keys/rotate",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: forwarded(b.rotateTokenKey, "Make a new key for tokens.", "rotate", "token-key"),
			},
			HelpSynopsis:    "Make a new key for tokens.",
			HelpDescription: "It signs five minutes later. Tokens that were signed before stay good.",
		},
		{
			Pattern:      "token-keys",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"minimum_version": {Type: framework.TypeInt, Required: true, Description: "The oldest version whose tokens are good."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   operation(b.readTokenKeys, "Show the versions of the key for tokens.", "read", "token-keys"),
				logical.UpdateOperation: forwarded(b.writeTokenKeys, "Revoke versions.", "write", "token-keys"),
			},
			HelpSynopsis:    "The versions of the key that signs tokens.",
			HelpDescription: "Raising minimum_version takes older versions out of jwks for good, and with them every token that they have signed.",
		},
	}
}

func (b *backend) readJWKS(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	r, err := b.tokenKeys(ctx, req.Storage, false)
	if err != nil {
		return nil, err
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	if r != nil {
		for _, k := range r.Versions {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.ed25519().Public(), KeyID: k.kid(), Algorithm: string(jose.EdDSA), Use: "sig"})
		}
	}
	body, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("jwks: %w", err)
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPStatusCode: http.StatusOK, logical.HTTPContentType: "application/json", logical.HTTPRawBody: body,
		logical.HTTPCacheControlHeader: fmt.Sprintf("max-age=%d", seconds(jwksMaxAge)),
	}}, nil
}

func (b *backend) readTokenKeys(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	r, err := b.tokenKeys(ctx, req.Storage, false)
	if err != nil || r == nil {
		return nil, err
	}
	data := r.view()
	data["signing_version"] = r.signer(b.now()).Version
	return &logical.Response{Data: data}, nil
}

// view is what users see of a ring: everything but the secrets.
func (r *ring) view() map[string]any {
	versions := make(map[string]any, len(r.Versions))
	for _, k := range r.Versions {
		versions[fmt.Sprint(k.Version)] = k.Created.Format(time.RFC3339)
	}
	return map[string]any{"minimum_version": r.Minimum, "latest_version": r.newest().Version, "versions": versions}
}

func (b *backend) rotateTokenKey(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	r, err := b.tokenKeys(ctx, req.Storage, true)
	if err != nil {
		return nil, err
	}
	if err := r.rotate(b.now()); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	return &logical.Response{Data: r.view()}, writeEntry(ctx, req.Storage, tokenKeysKey, r)
}

func (b *backend) writeTokenKeys(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	r, err := b.tokenKeys(ctx, req.Storage, true)
	if err != nil {
		return nil, err
	}
	v, refusal := minimum(d)
	if refusal != nil {
		return refusal, nil
	}
	if err := r.raise(v); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	return &logical.Response{Data: r.view()}, writeEntry(ctx, req.Storage, tokenKeysKey, r)
}

// minimum returns the field minimum_version.
func minimum(d *framework.FieldData) (uint32, *logical.Response) {
	v, ok := d.GetOk("minimum_version")
	n, _ := v.(int)
	if !ok || n < 1 || int64(n) > 1<<32-1 {
		return 0, logical.ErrorResponse("minimum_version is missing or less than 1")
	}
	return uint32(n), nil
}

// rotateTokenKeys makes a new version when it is time, and takes those away that no token can be of any more.
func (b *backend) rotateTokenKeys(ctx context.Context, s logical.Storage) error {
	b.write.Lock()
	defer b.write.Unlock()
	cfg, err := readConfig(ctx, s)
	if err != nil {
		return err
	}
	period := defaultRotation
	if cfg != nil {
		period = cfg.Rotation
	}
	r, err := b.tokenKeys(ctx, s, true)
	if err != nil {
		return err
	}
	now := b.now()
	changed := r.dropSuperseded(now, keepTokenKey)
	if now.Sub(r.newest().Created) >= period {
		if err := r.rotate(now); err != nil {
			return fmt.Errorf("rotate the key of tokens: %w", err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return writeEntry(ctx, s, tokenKeysKey, r)
}
