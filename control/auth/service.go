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
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Store is the part of the state that the service needs.
type Store interface {
	Key(id string) (state.Key, error)
	Keys(tenant string) ([]state.Key, error)
	Bootstrapped() (bool, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Service makes and verifies API keys. It is safe for concurrent use.
type Service struct {
	store Store
	now   func() time.Time
}

// New returns a service on store. now is the clock; nil means time.Now.
func New(store Store, now func() time.Time) *Service {
	if now == nil {
		now = time.Now
	}
	return &Service{store: store, now: now}
}

// errUnknown is the one answer to every key that is not good: nobody learns whether its id exists.
var errUnknown = api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
	"the API key is not valid: it is unknown, was revoked, or is misspelt")

// errMissing is the answer to a request without a key.
var errMissing = api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
	"this request needs an API key: set the header X-API-Key (SOULBOX_API_KEY for the command line)")

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
	return Identity{Tenant: known.Tenant, Kind: KindKey, Subject: known.ID, KeyID: known.ID, Name: known.Name, Link: LinkKey}, nil
}

// Create makes a key for a tenant. createdBy is the id of the key that asks for it. The secret is only in the answer.
func (s *Service) Create(ctx context.Context, tenant, name, createdBy string) (Secret, state.Key, error) {
	secret := newSecret()
	r, err := s.store.Apply(ctx, &state.KeyPut{Key: s.record(secret, tenant, name, createdBy)})
	if err != nil {
		return Secret{}, state.Key{}, storeError(err)
	}
	return secret, r.Key, nil
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
	case errors.Is(err, state.ErrNoLeader), errors.Is(err, state.ErrUnknownOutcome):
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%s", err.Error())
	}
	return err
}
