// Package auth tells who makes a request: it makes, verifies and revokes API keys.
//
// It owns the form of a key and the hash that is kept of it. What a caller may do is for others. A secret is shown once,
// when it is made, and is in no log, error or table.
package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Store is the part of the state that the service needs.
type Store interface {
	Key(id string) (state.Key, error)
	Keys(tenant string) ([]state.Key, error)
	// KeysEnded reports whether there are keys that have ended before a time.
	KeysEnded(before time.Time) (bool, error)
	Bootstrapped() (bool, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Service makes and verifies API keys. It is safe for concurrent use.
type Service struct {
	store Store
	now   func() time.Time
	uses  uses
}

// New returns a service on store. now is the clock; nil means time.Now.
func New(store Store, now func() time.Time) *Service {
	if now == nil {
		now = time.Now
	}
	return &Service{store: store, now: now, uses: uses{last: map[string]time.Time{}}}
}

// errUnknown is the one answer to every key that is not good: nobody learns whether its id exists.
var errUnknown = api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
	"the API key is not valid: it is unknown, was revoked, or is misspelt")

// errMissing is the answer to a request without a key.
var errMissing = api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
	"this request needs an API key or a token: set the header X-API-Key (SOULBOX_API_KEY for the command line)")

// absent is compared with where there is no key of that id, so that the answer takes as long.
var absent [sha256.Size]byte

// Verify returns whose key it is, or an *api.Error with status 401. It asks the tables in memory, which every server of
// the cluster follows: a revoked key is refused as soon as this server has applied the revocation, and no other cache has
// to be told. It takes about a microsecond.
func (s *Service) Verify(key string) (Identity, error) {
	if key == "" {
		return Identity{}, errMissing
	}
	secret, err := parseKey(key)
	if err != nil {
		return Identity{}, errUnknown
	}
	hash := secret.hash()
	known, err := s.store.Key(secret.ID())
	if errors.Is(err, state.ErrNotFound) {
		subtle.ConstantTimeCompare(hash[:], absent[:])
		return Identity{}, errUnknown
	}
	if err != nil {
		return Identity{}, err
	}
	if subtle.ConstantTimeCompare(hash[:], known.Hash) != 1 {
		return Identity{}, errUnknown
	}
	now := s.now()
	if known.Expired(now) {
		return Identity{}, errUnknown
	}
	s.uses.note(known, now)
	roles, scope := known.Rights()
	return Identity{
		Tenant: known.Tenant, Kind: KindKey, Subject: known.ID, KeyID: known.ID, Name: known.Name, Link: LinkKey,
		Roles: roles, Scope: scope, Subjects: []state.Subject{{Kind: state.SubjectKey, ID: known.ID}},
		Version: known.ID + "@" + strconv.FormatUint(known.ModifyIndex, 36),
	}, nil
}

// Name implements Link.
func (s *Service) Name() string { return LinkKey }

// Authenticate implements Link: whatever is no token is a key, or meant to be one.
func (s *Service) Authenticate(_ context.Context, c *Credentials) (Identity, error) {
	secret := c.secret()
	if secret == "" || looksLikeToken(secret) {
		return Identity{}, ErrNotMine
	}
	return s.Verify(secret)
}

var _ Link = (*Service)(nil)

// Create makes a key with all rights in its tenant. createdBy is who asks for it. The secret is only in the answer.
func (s *Service) Create(ctx context.Context, tenant, name, createdBy string) (Secret, state.Key, error) {
	return s.Make(ctx, state.Key{Tenant: tenant, Name: name, CreatedBy: createdBy, Roles: []string{"tenant-admin"}})
}

// Make makes a key as k says: its tenant, name, owner, roles and end. The secret is only in the answer.
func (s *Service) Make(ctx context.Context, k state.Key) (Secret, state.Key, error) {
	secret := newSecret()
	made := s.record(secret, k.Tenant, k.Name, k.CreatedBy)
	made.Owner, made.Roles, made.Global, made.ExpiresAt = k.Owner, k.Roles, k.Global, k.ExpiresAt
	if made.Roles == nil {
		made.Roles = []string{} // nil would be a key from before there were roles
	}
	r, err := s.store.Apply(ctx, &state.KeyPut{Key: made})
	if err != nil {
		return Secret{}, state.Key{}, storeError(err)
	}
	return secret, r.Key, nil
}

// Change changes a key, and returns it.
func (s *Service) Change(ctx context.Context, c *state.KeyChange) (state.Key, error) {
	r, err := s.store.Apply(ctx, c)
	return r.Key, storeError(err)
}

// Get returns a tenant's key.
func (s *Service) Get(tenant, id string) (state.Key, error) {
	k, err := s.store.Key(id)
	if err == nil && k.Tenant != tenant {
		err = fmt.Errorf("API key %s: %w", id, state.ErrNotFound) // the same words as where there is none
	}
	return k, storeError(err)
}

// List returns a tenant's keys, by id.
func (s *Service) List(tenant string) ([]state.Key, error) { return s.store.Keys(tenant) }

// Revoke deletes a tenant's key. It is refused from then on.
func (s *Service) Revoke(ctx context.Context, tenant, id string) error {
	_, err := s.store.Apply(ctx, &state.KeyDelete{Tenant: tenant, ID: id})
	return storeError(err)
}

func (s *Service) record(secret Secret, tenant, name, createdBy string) state.Key {
	hash := secret.hash()
	return state.Key{
		ID: secret.ID(), Tenant: tenant, Name: name, Hash: hash[:], CreatedAt: s.now().UTC(), CreatedBy: createdBy,
	}
}

func storeError(err error) error {
	var limit *state.LimitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &limit):
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%s", limit.Error())
	case errors.Is(err, state.ErrNotFound):
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "%s", err.Error())
	case errors.Is(err, state.ErrSuspended):
		return api.Errorf(http.StatusForbidden, api.CodeSuspended, "%s", err.Error())
	case errors.Is(err, state.ErrNoLeader), errors.Is(err, state.ErrUnknownOutcome):
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%s", err.Error())
	}
	return err
}
