package soulboxsecrets

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/shoenig/test/must"
)

func (m *mount) jwks() jose.JSONWebKeySet {
	m.t.Helper()
	resp := m.ok(logical.ReadOperation, "jwks")
	body, ok := resp.Data[logical.HTTPRawBody].([]byte)
	must.True(m.t, ok)
	var set jose.JSONWebKeySet
	must.NoError(m.t, json.Unmarshal(body, &set))
	for _, k := range set.Keys {
		must.True(m.t, k.IsPublic(), must.Sprint("a private key in jwks"))
		must.Eq(m.t, "EdDSA", k.Algorithm)
	}
	return set
}

// claims checks a token with the keys of this moment.
func (m *mount) claims(token string) (jwt.Claims, tokenClaims, error) {
	m.t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
	must.NoError(m.t, err)
	var registered jwt.Claims
	var own tokenClaims
	set := m.jwks()
	keys := set.Key(parsed.Headers[0].KeyID)
	if len(keys) != 1 {
		return registered, own, fmt.Errorf("%d keys are called %s", len(keys), parsed.Headers[0].KeyID)
	}
	return registered, own, parsed.Claims(keys[0], &registered, &own)
}

func TestToken_saysWhoAndForHowLong(t *testing.T) {
	m := configured(t)
	req := m.request(logical.ReadOperation, "token/dev", "ttl", "10m")
	req.EntityID = "entity-1"
	resp, err := m.HandleRequest(t.Context(), req)
	must.NoError(t, err)
	must.NoError(t, resp.Error())
	must.Nil(t, resp.Secret, must.Sprint("it is no lease"))
	registered, own, err := m.claims(resp.Data["token"].(string))
	must.NoError(t, err)
	must.Eq(t, tokenClaims{Tenant: "acme", Roles: []string{"developer", "viewer"}, Role: "dev", Entity: "entity-1"}, own)
	must.Eq(t, "vault:dev", registered.Subject)
	must.NotEq(t, "", registered.ID)
	must.Eq(t, m.clock.Add(10*time.Minute).Unix(), registered.Expiry.Time().Unix())
	must.NoError(t, registered.Validate(jwt.Expected{Issuer: defaultIssuer, AnyAudience: jwt.Audience{defaultAudience}, Time: m.clock}))
}

func TestToken_lives(t *testing.T) {
	for _, tc := range []struct {
		name            string
		ttl, max, asked string
		want            int64
		warns           bool
	}{
		{"by default", "0", "0", "", 900, false},
		{"the role's", "5m", "0", "", 300, false},
		{"an hour, though the role's leases live longer", "12h", "24h", "", 3600, false},
		{"the request's", "5m", "0", "20m", 1200, false},
		{"not beyond an hour", "0", "0", "2h", 3600, true},
		{"not beyond the role's", "1m", "10m", "2h", 600, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := configured(t)
			m.ok(logical.UpdateOperation, "roles/dev", "ttl", tc.ttl, "max_ttl", tc.max)
			var fields []any
			if tc.asked != "" {
				fields = []any{"ttl", tc.asked}
			}
			resp := m.ok(logical.ReadOperation, "token/dev", fields...)
			must.Eq(t, any(tc.want), resp.Data["ttl"])
			must.Eq(t, tc.warns, len(resp.Warnings) > 0)
		})
	}
	m := configured(t)
	m.ok(logical.CreateOperation, "roles/k", "tenant", "acme", "kind", "api_key")
	m.refuses("makes credentials of kind api_key only", logical.ReadOperation, "token/k")
	m.refuses("does not exist", logical.ReadOperation, "token/none")
}

func TestTokenKeys_rotateWithoutAGap(t *testing.T) {
	m := configured(t)
	token := func() string { return m.ok(logical.ReadOperation, "token/dev", "ttl", "1h").Data["token"].(string) }
	version := func() any { return m.ok(logical.ReadOperation, "token-keys").Data["signing_version"] }
	period := func() {
		t.Helper()
		_, err := m.HandleRequest(t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage})
		must.NoError(t, err)
	}
	first := token()
	period()
	must.Len(t, 1, m.jwks().Keys)
	m.clock = m.clock.Add(defaultRotation)
	period()
	must.Len(t, 2, m.jwks().Keys, must.Sprint("the next key is known"))
	must.Eq(t, any(uint32(1)), version(), must.Sprint("before it signs"))
	late := token()
	m.clock = m.clock.Add(publishAhead)
	must.Eq(t, any(uint32(2)), version())
	for _, tok := range []string{first, late, token()} {
		_, _, err := m.claims(tok)
		must.NoError(t, err)
	}
	m.clock = m.clock.Add(maxTokenTTL)
	period()
	must.Len(t, 2, m.jwks().Keys, must.Sprint("a token of the old key may live"))
	m.clock = m.clock.Add(20 * time.Minute)
	period()
	must.Len(t, 1, m.jwks().Keys)
	_, _, err := m.claims(late)
	must.Error(t, err)
}

func TestTokenKeys_revokedByVersion(t *testing.T) {
	m := configured(t)
	old := m.ok(logical.ReadOperation, "token/dev").Data["token"].(string)
	m.refuses("minimum_version is 2", logical.UpdateOperation, "token-keys", "minimum_version", 2)
	m.ok(logical.UpdateOperation, "token-keys/rotate")
	_, _, err := m.claims(old)
	must.NoError(t, err)
	m.ok(logical.UpdateOperation, "token-keys", "minimum_version", 2)
	_, _, err = m.claims(old)
	must.Error(t, err)
	_, _, err = m.claims(m.ok(logical.ReadOperation, "token/dev").Data["token"].(string))
	must.NoError(t, err, must.Sprint("the new key signs at once where there is no other"))
	for _, bad := range []any{0, -1, 1, 3} {
		m.refuses("minimum_version", logical.UpdateOperation, "token-keys", "minimum_version", bad)
	}
	m.refuses("minimum_version", logical.UpdateOperation, "token-keys")
}
