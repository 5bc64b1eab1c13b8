package server

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Keys is what the server needs of the API keys; auth.Service has it. Errors a client may see are *api.Error.
type Keys interface {
	Make(ctx context.Context, k state.Key) (auth.Secret, state.Key, error)
	Change(ctx context.Context, c *state.KeyChange) (state.Key, error)
	Get(tenant, id string) (state.Key, error)
	List(tenant string) ([]state.Key, error)
	Revoke(ctx context.Context, tenant, id string) error
}

// e2bTeams is GET /teams: the tenants that the caller has a role in, the one that he acts in first.
func (s *Server) e2bTeams(w http.ResponseWriter, r *http.Request) error {
	shown, _ := credentials(r) // the chain has verified them
	if shown.Key == "" && caller(r).KeyID != "" {
		shown.Key = shown.Bearer // a key, shown as a token
	}
	out := []api.Team{{TeamID: tenant(r), Name: tenant(r), APIKey: shown.Key, IsDefault: true}}
	if s.cfg.Policy != nil && s.cfg.Tenants != nil {
		list, err := s.ownTenants(r)
		if err != nil {
			return err
		}
		for _, t := range list {
			if t.ID == out[0].TeamID {
				out[0].Name = t.Name
				continue
			}
			out = append(out, api.Team{TeamID: t.ID, Name: t.Name, APIKey: shown.Key})
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// ownTeam refuses a tenant that is not the caller's.
func ownTeam(r *http.Request) error {
	if id := r.PathValue("team"); id != tenant(r) {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "team %.80q does not exist", id)
	}
	return nil
}

func (s *Server) needKeys() error {
	if s.cfg.Keys == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not manage keys")
	}
	return nil
}

// e2bKeys is GET /api-keys.
func (s *Server) e2bKeys(w http.ResponseWriter, r *http.Request) error {
	if err := s.needKeys(); err != nil {
		return err
	}
	keys, err := s.cfg.Keys.List(tenant(r))
	if err != nil {
		return err
	}
	out := make([]api.TeamAPIKey, 0, len(keys))
	for _, k := range keys {
		out = append(out, keyView(k))
	}
	slices.SortFunc(out, func(a, b api.TeamAPIKey) int { return b.CreatedAt.Compare(a.CreatedAt) })
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bCreateKey is POST /api-keys. The secret is in this answer and nowhere else.
func (s *Server) e2bCreateKey(w http.ResponseWriter, r *http.Request) error {
	var req api.NewAPIKey
	if err := firstOf(s.needKeys(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if req.Tenant != "" {
		if err := s.actIn(requestOf(r), req.Tenant); err != nil {
			return err
		}
		if d, err := s.decide(requestOf(r), requestOf(r).access.needs, nil); err != nil || !d.Allowed || d.Filter {
			return firstOf(err, forbidden(requestOf(r).access.needs))
		}
	}
	secret, k, err := s.makeKey(r, api.NewKey{Name: req.Name, Owner: req.Owner, Roles: req.Roles, Everywhere: req.Everywhere, ExpiresAt: req.ExpiresAt})
	if err != nil {
		return err
	}
	requestOf(r).object = k.ID
	writeJSON(w, http.StatusCreated, api.CreatedTeamAPIKey{TeamAPIKey: keyView(k), Key: secret.E2BKey()})
	return nil
}

// e2bRenameKey is PATCH /api-keys/{key}.
func (s *Server) e2bRenameKey(w http.ResponseWriter, r *http.Request) error {
	var req api.APIKeyUpdate
	if err := firstOf(s.needKeys(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if req.Name == "" {
		return invalid("name is missing")
	}
	if err := checkText("name", req.Name, state.MaxKeyName); err != nil {
		return err
	}
	k, err := s.ownKey(r)
	if err != nil {
		return err
	}
	if k, err = s.cfg.Keys.Change(r.Context(), &state.KeyChange{Tenant: k.Tenant, ID: k.ID, Name: &req.Name}); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, keyView(k))
	return nil
}

// e2bDeleteKey is DELETE /api-keys/{key}.
func (s *Server) e2bDeleteKey(w http.ResponseWriter, r *http.Request) error {
	if err := s.needKeys(); err != nil {
		return err
	}
	return s.deleteKey(w, r)
}

// keyUUID spells a key's id, 16 hexadecimal digits, as the contract wants it: in a UUID of version 8 (RFC 9562).
func keyUUID(id string) string {
	return "00000000-0000-8" + id[:3] + "-8" + id[3:6] + "-" + id[6:] + "00"
}

// keyOfUUID is the way back; the bare id is taken too. What is neither is "".
func keyOfUUID(s string) string {
	if len(s) == 36 {
		s = s[15:18] + s[20:23] + s[24:34]
	}
	if len(s) != 16 {
		return ""
	}
	return s
}

func lastUsed(k state.Key) *time.Time {
	if k.LastUsedAt.IsZero() {
		return nil
	}
	at := k.LastUsedAt.UTC()
	return &at
}

func keyView(k state.Key) api.TeamAPIKey {
	return api.TeamAPIKey{
		ID: keyUUID(k.ID), Name: k.Name, CreatedAt: k.CreatedAt.UTC(), LastUsed: lastUsed(k),
		Mask: api.KeyMask{Prefix: "e2b_", ValueLength: 80, MaskedValuePrefix: k.ID[:2], MaskedValueSuffix: "…"},
	}
}
