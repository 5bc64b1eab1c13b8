package state

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// sec is version v of a secret of a tenant; n tells its id.
func sec(tenant, n, name string, v uint64) *SecretPut {
	return &SecretPut{Was: v - 1, Secret: Secret{
		ID: "sec_" + strings.Repeat(n, 20), Tenant: tenant, Name: name, Version: v, Sealed: []byte("sealed" + n), Key: 1,
		Metadata: map[string]string{"team": "a"}, CreatedAt: at(int(v)), CreatedBy: "key:first", UpdatedAt: at(int(v)), UpdatedBy: "key:other",
	}}
}

func secretScript() []Command {
	return []Command{
		sec(DefaultTenant, "1", "api-key", 1), sec(DefaultTenant, "2", "api-key", 1), // the second one is refused
		sec(DefaultTenant, "1", "api-key", 2), sec(DefaultTenant, "3", "gone", 1),
		&SecretDelete{Tenant: "another", ID: "sec_" + strings.Repeat("3", 20)}, // refused
		&SecretDelete{Tenant: DefaultTenant, ID: "sec_" + strings.Repeat("3", 20)},
	}
}

func TestSecret_hasOneNameAndVersionsOneByOne(t *testing.T) {
	f := replay(t, []Command{&TenantPut{Tenant: Tenant{ID: "acme", Name: "Acme"}}, sec(DefaultTenant, "1", "api-key", 1)})
	_, err := f.store.apply(100, sec(DefaultTenant, "2", "api-key", 1))
	must.ErrorIs(t, err, ErrExists)
	_, err = f.store.apply(101, sec("acme", "3", "api-key", 1))
	must.NoError(t, err, must.Sprint("names are each tenant's own"))
	r, err := f.store.apply(102, sec(DefaultTenant, "1", "api-key", 2))
	must.NoError(t, err)
	must.Eq(t, at(1), r.Secret.CreatedAt)
	must.Eq(t, at(2), r.Secret.UpdatedAt)
	_, err = f.store.apply(103, sec(DefaultTenant, "1", "api-key", 2))
	must.ErrorIs(t, err, ErrConflict, must.Sprint("somebody else was first"))
	_, err = f.store.apply(104, sec("acme", "1", "api-key", 3))
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("another tenant's"))
	_, err = f.store.apply(105, sec("nobody", "4", "x", 1))
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("no such tenant"))

	for _, ref := range []string{"api-key", "API-Key", "sec_" + strings.Repeat("1", 20)} {
		got, err := f.store.Secret(DefaultTenant, ref)
		must.NoError(t, err)
		must.Eq(t, uint64(2), got.Version)
	}
	_, err = f.store.Secret("acme", "sec_"+strings.Repeat("1", 20))
	must.ErrorIs(t, err, ErrNotFound)
	list, err := f.store.Secrets("acme")
	must.NoError(t, err)
	must.Len(t, 1, list)

	_, err = f.store.apply(106, &SecretDelete{Tenant: "acme", ID: "sec_" + strings.Repeat("1", 20)})
	must.ErrorIs(t, err, ErrNotFound)
	_, err = f.store.apply(107, &TenantDelete{ID: "acme"})
	must.ErrorIs(t, err, ErrConflict, must.Sprint("it owns a secret"))
	_, err = f.store.apply(108, &TenantDelete{ID: "acme", Cascade: true})
	must.NoError(t, err)
	list, err = f.store.Secrets("acme")
	must.NoError(t, err)
	must.SliceEmpty(t, list)
}

func TestSecret_countsForTheQuota(t *testing.T) {
	f := replay(t, []Command{quota(map[string]int64{"secrets": 1}), sec(DefaultTenant, "1", "a", 1)})
	_, err := f.store.apply(100, sec(DefaultTenant, "1", "a", 2))
	must.NoError(t, err, must.Sprint("a version is no other secret"))
	_, err = f.store.apply(101, sec(DefaultTenant, "2", "b", 1))
	must.Eq(t, 429, api.StatusOf(err))
	must.StrContains(t, err.Error(), "secrets: 1 of 1")
	_, err = f.store.apply(102, &SecretDelete{Tenant: DefaultTenant, ID: "sec_" + strings.Repeat("1", 20)})
	must.NoError(t, err)
	_, err = f.store.apply(103, sec(DefaultTenant, "2", "b", 1))
	must.NoError(t, err)
}

func TestSecret_checks(t *testing.T) {
	for want, change := range map[string]func(*SecretPut){
		"tenant":   func(c *SecretPut) { c.Secret.Tenant = "" },
		"secretID": func(c *SecretPut) { c.Secret.ID = "sec_short" },
		"name":     func(c *SecretPut) { c.Secret.Name = "Upper" },
		"id":       func(c *SecretPut) { c.Secret.Name = c.Secret.ID },
		"value":    func(c *SecretPut) { c.Secret.Sealed = make([]byte, maxSealed+1) },
		"version":  func(c *SecretPut) { c.Was = 7 },
		"metadata": func(c *SecretPut) {
			c.Secret.Metadata = map[string]string{"k": strings.Repeat("x", MaxSecretMetadata+1)}
		},
	} {
		c := sec(DefaultTenant, "1", "a", 1)
		must.NoError(t, c.check())
		change(c)
		must.ErrorContains(t, c.check(), want)
	}
}
