package soulboxsecrets

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"github.com/soulbox-dev/soulbox/control/api"
)

// secretType names the leases of API keys. It is stored with each.
const secretType = "soulbox_api_key"

// callTimeout bounds what a request of Vault waits for the control service.
const callTimeout = 10 * time.Second

// keyNamePrefix begins the names of all keys that the engine makes.
const keyNamePrefix = "vault-"

func (b *backend) credsPaths() []*framework.Path {
	handler := forwarded(b.makeCreds, "Make an API key.", "generate", "credentials")
	return []*framework.Path{{
		Pattern:      "creds/" + framework.GenericNameRegex("name"),
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
		Fields: map[string]*framework.FieldSchema{
			"name": {Type: framework.TypeLowerCaseString, Required: true, Description: "Name of the role."},
			"ttl":  {Type: framework.TypeDurationSecond, Description: "Life of the lease until it is renewed. Default: the role's."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: handler, logical.UpdateOperation: handler,
		},
		HelpSynopsis: "Make an API key with a role's rights, as a lease.",
		HelpDescription: "The key works until its lease is revoked or ends. The control service itself ends it when the lease could not be " +
			"renewed any more, should Vault be gone by then.",
	}}
}

func (b *backend) apiKeySecret() *framework.Secret {
	return &framework.Secret{
		Type: secretType,
		Fields: map[string]*framework.FieldSchema{
			"api_key":     {Type: framework.TypeString, Description: "The API key."},
			"e2b_api_key": {Type: framework.TypeString, Description: "The same key as clients of the E2B contract want it."},
		},
		Renew:  b.renewKey,
		Revoke: b.revokeKey,
	}
}

// maxTTL is the longest life of a lease of r.
func (b *backend) maxTTL(r *role) time.Duration {
	limit := b.System().MaxLeaseTTL()
	if r.MaxTTL > 0 && r.MaxTTL < limit {
		return r.MaxTTL
	}
	return limit
}

func (b *backend) makeCreds(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	name := text(d, "name")
	r, refusal, err := b.allowed(ctx, req.Storage, name, kindAPIKey)
	if err != nil || refusal != nil {
		return refusal, err
	}
	ttl, warnings, err := framework.CalculateTTL(b.System(), requested(d), r.TTL, 0, r.MaxTTL, 0, time.Time{})
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	maxTTL := b.maxTTL(r)
	client, err := b.service(ctx, req.Storage)
	if errors.Is(err, errUnconfigured) {
		return logical.ErrorResponse(err.Error()), nil
	}
	if err != nil {
		return nil, err
	}
	issued := b.now()
	want := apiKey{Tenant: r.Tenant, Name: keyName(name), Roles: r.Roles, Expires: issued.Add(maxTTL)}
	// Should this process die below, the entry lets Vault find what was made, by its name, which nothing else has.
	wal, err := framework.PutWAL(ctx, req.Storage, walKey, walEntry{Tenant: want.Tenant, Name: want.Name, Expires: want.Expires.Unix()})
	if err != nil {
		return nil, fmt.Errorf("write-ahead log: %w", err)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	made, err := client.CreateKey(call, want)
	if err != nil {
		if refused(err) { // and so nothing was made
			return logical.ErrorResponse(err.Error()), b.forget(ctx, req.Storage, wal)
		}
		return nil, err
	}
	resp := b.Secret(secretType).Response(map[string]any{
		"api_key": made.Secret, "e2b_api_key": e2bSpelling(made.Secret), "key_id": made.ID, "tenant": want.Tenant, "roles": want.Roles,
		"expires_at": want.Expires.UTC().Format(time.RFC3339),
	}, map[string]any{
		"key_id": made.ID, "tenant": want.Tenant, "role": name, "max_ttl": seconds(maxTTL),
	})
	resp.Secret.TTL, resp.Secret.MaxTTL = ttl, maxTTL
	for _, w := range warnings {
		resp.AddWarning(w)
	}
	return resp, b.forget(ctx, req.Storage, wal)
}

// forget deletes an entry of the write-ahead log.
func (b *backend) forget(ctx context.Context, s logical.Storage, wal string) error {
	if err := framework.DeleteWAL(ctx, s, wal); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	return nil
}

// refused reports that the control service has understood the request and not done it.
func refused(err error) bool {
	var e *api.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return false
}

// keyName returns a name for a key of a role that no other key has.
func keyName(role string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	if len(role) > 32 {
		role = role[:32]
	}
	return keyNamePrefix + role + "-" + hex.EncodeToString(b[:])
}

// lease is what is stored with a lease.
type lease struct {
	id, tenant, role string
	maxTTL           time.Duration
}

func readLease(s *logical.Secret) (lease, error) {
	if s == nil {
		return lease{}, errors.New("the request has no lease")
	}
	word := func(name string) string {
		v, _ := s.InternalData[name].(string)
		return v
	}
	l := lease{id: word("key_id"), tenant: word("tenant"), role: word("role")}
	switch n := s.InternalData["max_ttl"].(type) { // as it was made, and as it comes back from the storage
	case int64:
		l.maxTTL = time.Duration(n) * time.Second
	case float64:
		l.maxTTL = time.Duration(n) * time.Second
	case interface{ Int64() (int64, error) }:
		v, err := n.Int64()
		if err != nil {
			return lease{}, fmt.Errorf("the lease's max_ttl: %w", err)
		}
		l.maxTTL = time.Duration(v) * time.Second
	}
	if l.id == "" || l.tenant == "" {
		return lease{}, errors.New("the lease names no key: it is of another version of the plugin")
	}
	return l, nil
}

// renewKey makes a lease longer, never beyond the time at which the control service ends the key.
func (b *backend) renewKey(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	l, err := readLease(req.Secret)
	if err != nil {
		return nil, err
	}
	r, refusal, err := b.allowed(ctx, req.Storage, l.role, kindAPIKey)
	if err != nil || refusal != nil {
		return refusal, err
	}
	maxTTL := b.maxTTL(r)
	if l.maxTTL > 0 && l.maxTTL < maxTTL {
		maxTTL = l.maxTTL
	}
	ttl, warnings, err := framework.CalculateTTL(b.System(), req.Secret.Increment, r.TTL, 0, maxTTL, 0, req.Secret.IssueTime)
	if err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	resp := &logical.Response{Secret: req.Secret}
	resp.Secret.TTL, resp.Secret.MaxTTL = ttl, maxTTL
	for _, w := range warnings {
		resp.AddWarning(w)
	}
	return resp, nil
}

// revokeKey takes a key back. Vault calls it again until it succeeds.
func (b *backend) revokeKey(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	l, err := readLease(req.Secret)
	if err != nil {
		return nil, err
	}
	client, err := b.service(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return nil, client.DeleteKey(ctx, l.tenant, l.id)
}
