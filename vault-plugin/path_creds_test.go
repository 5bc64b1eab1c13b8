package soulboxsecrets

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// stored returns a lease as it comes back from Vault's storage.
func stored(t *testing.T, s *logical.Secret) *logical.Secret {
	t.Helper()
	b, err := json.Marshal(s.InternalData)
	must.NoError(t, err)
	out := *s
	out.InternalData = map[string]any{}
	must.NoError(t, json.Unmarshal(b, &out.InternalData))
	return &out
}

func TestCreds_areALeaseWithTheRolesRights(t *testing.T) {
	m := configured(t)
	for _, op := range []logical.Operation{logical.ReadOperation, logical.UpdateOperation} {
		resp := m.ok(op, "creds/dev", "ttl", "10m")
		made := m.service.created[len(m.service.created)-1]
		must.Eq(t, made.Secret, resp.Data["api_key"].(string))
		must.Eq(t, e2bSpelling(made.Secret), resp.Data["e2b_api_key"].(string))
		must.Eq(t, "acme", made.Tenant)
		must.Eq(t, []string{"developer", "viewer"}, made.Roles)
		must.Eq(t, m.clock.Add(2*time.Hour), made.Expires, must.Sprint("the key ends when the lease cannot be renewed any more"))
		must.StrHasPrefix(t, "vault-dev-", made.Name)
		must.Eq(t, 10*time.Minute, resp.Secret.TTL)
		must.Eq(t, 2*time.Hour, resp.Secret.MaxTTL)
		must.True(t, resp.Secret.Renewable)
		for name, v := range resp.Secret.InternalData {
			s, _ := v.(string)
			must.StrNotContains(t, s, "_"+strings.Repeat("5", secretDigits), must.Sprint("the secret is not stored: ", name))
		}
	}
	must.NotEq(t, m.service.created[0].Name, m.service.created[1].Name)
	must.SliceEmpty(t, m.wal())
}

func TestCreds_lives(t *testing.T) {
	for _, tc := range []struct {
		name             string
		ttl, max, asked  string
		wantTTL, wantMax time.Duration
		warns            bool
	}{
		{"the mount's", "0", "0", "", time.Hour, 24 * time.Hour, false},
		{"the role's", "30m", "2h", "", 30 * time.Minute, 2 * time.Hour, false},
		{"the request's", "30m", "2h", "1h", time.Hour, 2 * time.Hour, false},
		{"not beyond the role's", "30m", "2h", "3h", 2 * time.Hour, 2 * time.Hour, true},
		{"not beyond the mount's", "0", "48h", "48h", 24 * time.Hour, 24 * time.Hour, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := configured(t)
			m.ok(logical.UpdateOperation, "roles/dev", "ttl", tc.ttl, "max_ttl", tc.max)
			var fields []any
			if tc.asked != "" {
				fields = []any{"ttl", tc.asked}
			}
			resp := m.ok(logical.ReadOperation, "creds/dev", fields...)
			must.Eq(t, tc.wantTTL, resp.Secret.TTL)
			must.Eq(t, tc.wantMax, resp.Secret.MaxTTL)
			must.Eq(t, tc.warns, len(resp.Warnings) > 0)
		})
	}
}

func TestCreds_refusals(t *testing.T) {
	m := configured(t)
	m.refuses("role \"none\" does not exist", logical.ReadOperation, "creds/none")
	m.refuses("negative value", logical.ReadOperation, "creds/dev", "ttl", "-5")
	m.ok(logical.CreateOperation, "roles/t", "tenant", "acme", "kind", "token")
	m.refuses("makes credentials of kind token only", logical.ReadOperation, "creds/t")
	m.service.fail["CreateKey"] = api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "tenant acme is not yours")
	m.refuses("tenant acme is not yours", logical.ReadOperation, "creds/dev")
	must.SliceEmpty(t, m.wal(), must.Sprint("nothing was made, so nothing is to be taken back"))
	must.SliceEmpty(t, m.service.created)
}

func TestRenew_neverBeyondTheEndOfTheKey(t *testing.T) {
	m := configured(t)
	secret := stored(t, m.ok(logical.ReadOperation, "creds/dev").Secret)
	renew := func(issued time.Time, increment time.Duration) (*logical.Response, error) {
		s := *secret
		s.IssueTime, s.Increment = issued, increment
		req := m.request(logical.RenewOperation, "creds/dev")
		req.Secret = &s
		return m.HandleRequest(t.Context(), req)
	}
	resp, err := renew(time.Now(), 20*time.Minute)
	must.NoError(t, err)
	must.Eq(t, 20*time.Minute, resp.Secret.TTL)
	resp, err = renew(time.Now().Add(-90*time.Minute), time.Hour)
	must.NoError(t, err)
	must.Between(t, 29*time.Minute, resp.Secret.TTL, 30*time.Minute)
	must.SliceNotEmpty(t, resp.Warnings)

	m.ok(logical.UpdateOperation, "roles/dev", "max_ttl", "10h") // does not bring a key's end later
	resp, err = renew(time.Now().Add(-90*time.Minute), 5*time.Hour)
	must.NoError(t, err)
	must.Between(t, 29*time.Minute, resp.Secret.TTL, 30*time.Minute)

	m.ok(logical.DeleteOperation, "roles/dev")
	resp, err = renew(time.Now(), time.Minute)
	must.NoError(t, err)
	must.ErrorContains(t, resp.Error(), "does not exist")
}

func TestRevoke_takesTheKeyAwayAndMayComeAgain(t *testing.T) {
	m := configured(t)
	resp := m.ok(logical.ReadOperation, "creds/dev")
	m.ok(logical.DeleteOperation, "roles/dev") // a lease needs its role no more
	req := m.request(logical.RevokeOperation, "creds/dev")
	req.Secret = stored(t, resp.Secret)
	m.service.fail["DeleteKey"] = api.ErrUnreachable
	_, err := m.HandleRequest(t.Context(), req)
	must.ErrorIs(t, err, api.ErrUnreachable, must.Sprint("Vault tries again"))
	must.Len(t, 2, m.service.ids())
	delete(m.service.fail, "DeleteKey")
	for range 2 {
		_, err = m.HandleRequest(t.Context(), req)
		must.NoError(t, err)
		must.Eq(t, []string{keyID(rootSecret)}, m.service.ids())
	}
	req.Secret = &logical.Secret{InternalData: map[string]any{"secret_type": secretType}}
	_, err = m.HandleRequest(t.Context(), req)
	must.ErrorContains(t, err, "names no key")
}

func rollBack(m *mount) error {
	m.t.Helper()
	resp, err := m.HandleRequest(m.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage, Data: map[string]any{"immediate": true}})
	if err == nil && resp != nil {
		err = resp.Error()
	}
	return err
}

func TestRollback_takesBackWhatWasMadeForNoLease(t *testing.T) {
	m := configured(t)
	m.service.fail["CreateKey"] = errors.New("the connection broke after the request")
	_, err := m.do(logical.ReadOperation, "creds/dev")
	must.Error(t, err)
	must.Len(t, 2, m.service.ids())
	must.Len(t, 1, m.wal())
	m.service.fail["FindKeys"] = api.ErrUnreachable
	must.Error(t, rollBack(m))
	must.Len(t, 1, m.wal(), must.Sprint("until it succeeds"))
	delete(m.service.fail, "FindKeys")
	must.NoError(t, rollBack(m))
	must.SliceEmpty(t, m.wal())
	must.Eq(t, []string{keyID(rootSecret)}, m.service.ids())
}

func TestRollback_leavesAloneWhatHasEndedByItself(t *testing.T) {
	m := configured(t)
	_, err := framework.PutWAL(t.Context(), m.storage, walKey, walEntry{Tenant: "acme", Name: "x", Expires: m.clock.Add(-time.Minute).Unix()})
	must.NoError(t, err)
	m.service.fail["FindKeys"] = api.ErrUnreachable
	must.NoError(t, rollBack(m))
	must.SliceEmpty(t, m.wal())
}

func TestRollback_refusesWhatItDoesNotKnow(t *testing.T) {
	m := configured(t)
	_, err := framework.PutWAL(t.Context(), m.storage, "other", walEntry{Tenant: "acme", Name: "x"})
	must.NoError(t, err)
	must.ErrorContains(t, rollBack(m), "kind \"other\" is unknown")
	must.Len(t, 1, m.wal())
}

func TestRotateRoot_replacesTheKeyAndTakesTheOldOneAway(t *testing.T) {
	m := configured(t)
	resp := m.ok(logical.UpdateOperation, "config/rotate-root")
	must.SliceEmpty(t, resp.Warnings)
	made := m.service.created[0]
	must.Eq(t, any(made.ID), resp.Data["api_key_id"])
	must.Eq(t, "ops", made.Tenant)
	must.Eq(t, []string{"key-maker"}, made.Roles)
	must.True(t, made.Expires.IsZero())
	must.Eq(t, []string{made.ID}, m.service.ids())
	must.Eq(t, any(made.ID), m.ok(logical.ReadOperation, "config").Data["api_key_id"])
	must.SliceEmpty(t, m.wal())
}

func TestRotateRoot_interrupted(t *testing.T) {
	t.Run("before the new key is stored, the new one goes", func(t *testing.T) {
		m := configured(t)
		m.service.fail["CreateKey"] = errors.New("broken")
		_, err := m.do(logical.UpdateOperation, "config/rotate-root")
		must.Error(t, err)
		must.Len(t, 2, m.service.ids())
		must.NoError(t, rollBack(m))
		must.Eq(t, []string{keyID(rootSecret)}, m.service.ids())
		must.Eq(t, any(keyID(rootSecret)), m.ok(logical.ReadOperation, "config").Data["api_key_id"])
	})
	t.Run("after it, the old one goes", func(t *testing.T) {
		m := configured(t)
		m.service.fail["DeleteKey"] = api.ErrUnreachable
		resp := m.ok(logical.UpdateOperation, "config/rotate-root")
		must.SliceNotEmpty(t, resp.Warnings)
		must.Len(t, 2, m.service.ids())
		delete(m.service.fail, "DeleteKey")
		must.NoError(t, rollBack(m))
		must.Eq(t, []string{m.service.created[0].ID}, m.service.ids())
	})
}
