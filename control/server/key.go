package server

import (
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// keys is GET /v1/keys.
func (s *Server) keys(w http.ResponseWriter, r *http.Request) error {
	if err := s.needKeys(); err != nil {
		return err
	}
	list, err := s.cfg.Keys.List(tenant(r))
	if err != nil {
		return err
	}
	out := make([]api.Key, 0, len(list))
	for _, k := range list {
		out = append(out, ownKeyView(k))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// createKey is POST /v1/keys.
func (s *Server) createKey(w http.ResponseWriter, r *http.Request) error {
	var req api.NewKey
	if err := firstOf(s.needKeys(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	secret, k, err := s.makeKey(r, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, api.CreatedKey{Key: ownKeyView(k), Secret: secret.Key(), SecretE2B: secret.E2BKey()})
	return nil
}

// changeKey is PATCH /v1/keys/{key}.
func (s *Server) changeKey(w http.ResponseWriter, r *http.Request) error {
	var req api.KeyChange
	if err := firstOf(s.needKeys(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	k, err := s.ownKey(r)
	if err != nil {
		return err
	}
	c := &state.KeyChange{Tenant: k.Tenant, ID: k.ID, Name: req.Name, Owner: req.Owner, ExpiresAt: req.ExpiresAt}
	if req.Roles != nil {
		if err := s.mayGive(r, k.Scope(), *req.Roles); err != nil {
			return err
		}
		c.Roles = append([]string{}, *req.Roles...)
	}
	if k, err = s.cfg.Keys.Change(r.Context(), c); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, ownKeyView(k))
	return nil
}

// deleteKey is DELETE /v1/keys/{key}.
func (s *Server) deleteKey(w http.ResponseWriter, r *http.Request) error {
	if err := s.needKeys(); err != nil {
		return err
	}
	k, err := s.ownKey(r)
	if err != nil {
		return err
	}
	return noContent(w, s.cfg.Keys.Revoke(r.Context(), k.Tenant, k.ID))
}

// ownKey is the key that a path names. One with rights in all tenants belongs to those who have them, wherever it was made.
func (s *Server) ownKey(r *http.Request) (state.Key, error) {
	id := keyOfUUID(r.PathValue("key"))
	if id == "" {
		return state.Key{}, api.Errorf(http.StatusNotFound, api.CodeNotFound, "key %.80q does not exist", r.PathValue("key"))
	}
	k, err := s.cfg.Keys.Get(tenant(r), id)
	if err != nil {
		return state.Key{}, err
	}
	if roles, scope := k.Rights(); scope == state.Everywhere {
		return k, s.mayGive(r, scope, roles)
	}
	return k, nil
}

// makeKey makes a key that may do no more than who asks for it.
func (s *Server) makeKey(r *http.Request, req api.NewKey) (secret auth.Secret, k state.Key, err error) {
	if req.Name == "" {
		return secret, k, invalid("name is missing")
	}
	if err := checkText("name", req.Name, state.MaxKeyName); err != nil {
		return secret, k, err
	}
	if !req.ExpiresAt.IsZero() && !req.ExpiresAt.After(time.Now()) {
		return secret, k, invalid("expires_at: %s has passed", req.ExpiresAt.UTC().Format(time.RFC3339))
	}
	if req.Roles == nil {
		req.Roles = []string{rbac.RoleDeveloper}
	}
	scope, err := s.scope(r, req.Everywhere)
	if err != nil {
		return secret, k, err
	}
	if err := s.mayGive(r, scope, req.Roles); err != nil {
		return secret, k, err
	}
	return s.cfg.Keys.Make(r.Context(), state.Key{
		Tenant: tenant(r), Name: req.Name, Owner: req.Owner, Roles: slices.Clone(req.Roles), Global: req.Everywhere,
		ExpiresAt: utc(req.ExpiresAt), CreatedBy: caller(r).User(),
	})
}

func ownKeyView(k state.Key) api.Key {
	roles, scope := k.Rights()
	return api.Key{
		ID: k.ID, Tenant: k.Tenant, Name: k.Name, Owner: k.Owner, Roles: append([]string{}, roles...), Scope: scope,
		CreatedAt: utc(k.CreatedAt), CreatedBy: k.CreatedBy, ExpiresAt: utc(k.ExpiresAt), LastUsed: utc(k.LastUsedAt),
	}
}
