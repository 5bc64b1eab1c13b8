package soulboxsecrets

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

const box = api.SandboxID("iabcdefghij0123456789")

func TestURLKeys_areMadeListedAndDeleted(t *testing.T) {
	m := newMount(t)
	resp := m.ok(logical.CreateOperation, "url-keys/links")
	must.Eq(t, any(uint32(1)), resp.Data["latest_version"])
	m.ok(logical.CreateOperation, "url-keys/other", "auto_rotate_period", "24h")
	must.Eq(t, any([]string{"links", "other"}), m.ok(logical.ListOperation, "url-keys/").Data["keys"])
	must.Eq(t, any(int64(86400)), m.ok(logical.ReadOperation, "url-keys/other").Data["auto_rotate_period"])
	m.ok(logical.UpdateOperation, "url-keys/links", "auto_rotate_period", "0")
	must.Eq(t, any(uint32(1)), m.ok(logical.ReadOperation, "url-keys/links").Data["latest_version"], must.Sprint("writing again makes no version"))
	for name, v := range m.ok(logical.ReadOperation, "url-keys/links").Data {
		must.NotEq(t, "secret", name)
		_, secret := v.([]byte)
		must.False(t, secret)
	}
	m.refuses("auto_rotate_period is 1m0s", logical.UpdateOperation, "url-keys/links", "auto_rotate_period", "1m")
	m.ok(logical.DeleteOperation, "url-keys/links")
	must.Nil(t, m.ok(logical.ReadOperation, "url-keys/links"))
	for _, path := range []string{"rotate", "sign", "verify"} {
		m.refuses("does not exist", logical.UpdateOperation, "url-keys/links/"+path)
	}
	m.refuses("does not exist", logical.ReadOperation, "url-keys/links/export")
}

func TestURLKeys_signAndVerify(t *testing.T) {
	m := newMount(t)
	m.ok(logical.CreateOperation, "url-keys/links")
	signed := m.ok(logical.UpdateOperation, "url-keys/links/sign", "sandbox", string(box), "path", "/a b", "user", "root", "ttl", "1m")
	query, _ := signed.Data["query"].(string)
	verify := func(query, operation string) map[string]any {
		t.Helper()
		return m.ok(logical.UpdateOperation, "url-keys/links/verify", "query", query, "operation", operation).Data
	}
	good := verify(query, "read")
	must.Eq(t, any(true), good["valid"])
	must.Eq(t, any("/a b"), good["path"])
	must.Eq(t, any("root"), good["user"])
	for reason, data := range map[string]map[string]any{
		"the signature does not fit":                         verify(query, "write"),
		"the link is not of the form that this engine signs": verify("x=1", "read"),
		"the query does not parse":                           verify("%zz", "read"),
	} {
		must.Eq(t, map[string]any{"valid": false, "reason": reason}, data)
	}
	must.Eq(t, any(false), verify(strings.Replace(query, "root", "user", 1), "read")["valid"])
	m.clock = m.clock.Add(time.Minute)
	must.Eq(t, any("the link has expired"), verify(query, "read")["reason"])

	for _, tc := range []struct {
		want   string
		fields []any
	}{
		{"sandbox:", []any{"sandbox", "x", "path", "/a"}},
		{"path has 0 bytes", []any{"sandbox", string(box)}},
		{"path has 4097 bytes", []any{"sandbox", string(box), "path", strings.Repeat("a", 4097)}},
		{"operation is", []any{"sandbox", string(box), "path", "/a", "operation", "delete"}},
		{"ttl is 200h0m0s", []any{"sandbox", string(box), "path", "/a", "ttl", "200h"}},
		{"negative value", []any{"sandbox", string(box), "path", "/a", "ttl", "-1"}},
		{"user has 257 bytes", []any{"sandbox", string(box), "path", "/a", "user", strings.Repeat("u", 257)}},
	} {
		m.refuses(tc.want, logical.UpdateOperation, "url-keys/links/sign", tc.fields...)
	}
}

func TestURLKeys_exportIsWhatTheControlServiceChecksLinksWith(t *testing.T) {
	m := newMount(t)
	m.ok(logical.CreateOperation, "url-keys/links")
	m.ok(logical.UpdateOperation, "url-keys/links/rotate")
	signed := m.ok(logical.UpdateOperation, "url-keys/links/sign", "sandbox", string(box), "path", "/a")
	export := m.ok(logical.ReadOperation, "url-keys/links/export")
	secrets, _ := export.Data["keys"].(map[string]any)
	must.MapLen(t, 2, secrets)
	must.Eq(t, any(uint32(2)), export.Data["latest_version"])
	text, _ := secrets["2"].(string)
	secret, err := base64.StdEncoding.DecodeString(text)
	must.NoError(t, err)
	must.Len(t, 32, secret)
	q, err := url.ParseQuery(signed.Data["query"].(string))
	must.NoError(t, err)
	link, version, mac, err := api.ParseSignedLink(q, "read")
	must.NoError(t, err)
	must.Eq(t, 2, version)
	must.True(t, link.SignedBy(secret, mac))
}

func TestURLKeys_aVersionThatIsRevokedTakesItsLinksWithIt(t *testing.T) {
	m := newMount(t)
	m.ok(logical.CreateOperation, "url-keys/links")
	sign := func() string {
		q, _ := m.ok(logical.UpdateOperation, "url-keys/links/sign", "sandbox", string(box), "path", "/a").Data["query"].(string)
		return q
	}
	verify := func(q string) map[string]any {
		return m.ok(logical.UpdateOperation, "url-keys/links/verify", "query", q).Data
	}
	old := sign()
	m.refuses("rotate before the newest is revoked", logical.UpdateOperation, "url-keys/links", "minimum_version", 2)
	m.ok(logical.UpdateOperation, "url-keys/links/rotate")
	must.Eq(t, any(true), verify(old)["valid"], must.Sprint("a rotation has no gap"))
	m.ok(logical.UpdateOperation, "url-keys/links", "minimum_version", 2)
	must.Eq(t, any("the version of the key is revoked or unknown"), verify(old)["reason"])
	must.Eq(t, any(true), verify(sign())["valid"])
	m.refuses("minimum_version is 1", logical.UpdateOperation, "url-keys/links", "minimum_version", 1)
}

func TestURLKeys_rotateByTime(t *testing.T) {
	m := newMount(t)
	m.ok(logical.CreateOperation, "url-keys/links", "auto_rotate_period", "24h")
	m.ok(logical.CreateOperation, "url-keys/still")
	latest := func(name string) any { return m.ok(logical.ReadOperation, "url-keys/"+name).Data["latest_version"] }
	for range 12 {
		m.clock = m.clock.Add(24 * time.Hour)
		must.NoError(t, m.periodic(t.Context(), &logical.Request{Storage: m.storage}))
	}
	must.Eq(t, any(uint32(13)), latest("links"))
	must.Eq(t, any(uint32(1)), latest("still"))
	// A version signs for a day, and its links live seven.
	must.Eq(t, any(uint32(4)), m.ok(logical.ReadOperation, "url-keys/links").Data["minimum_version"])
}

func TestRing_hasALimitAndNoGaps(t *testing.T) {
	r := newRing(time.Unix(0, 0))
	for range maxVersions - 1 {
		must.NoError(t, r.rotate(time.Unix(0, 0)))
	}
	must.ErrorContains(t, r.rotate(time.Unix(0, 0)), "raise minimum_version first")
	must.NoError(t, r.raise(maxVersions))
	must.NoError(t, r.rotate(time.Unix(0, 0)))
	must.Eq(t, maxVersions+1, r.newest().Version)
	for v, want := range map[uint32]bool{0: false, 1: false, maxVersions: true, maxVersions + 1: true, maxVersions + 2: false, 1<<32 - 1: false} {
		k, ok := r.find(v)
		must.Eq(t, want, ok)
		must.True(t, !ok || k.Version == v)
	}
}
