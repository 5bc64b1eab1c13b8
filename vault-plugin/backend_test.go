package soulboxsecrets

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
)

// fakeService is a control service in memory.
type fakeService struct {
	mu      sync.Mutex
	self    apiKey
	keys    map[string]apiKey // by id
	made    int
	fail    map[string]error // by method; CreateKey's comes after the key was made where it is no *api.Error
	closed  int
	created []apiKey
}

func (f *fakeService) Self(context.Context) (apiKey, error) { return f.self, f.fail["Self"] }

func (f *fakeService) CreateKey(_ context.Context, k apiKey) (apiKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.fail["CreateKey"]
	if refused(err) {
		return apiKey{}, err
	}
	f.made++
	k.ID = fmt.Sprintf("%016x", f.made)
	k.Secret = "sb_" + k.ID + "_" + strings.Repeat("5", secretDigits)
	f.keys[k.ID] = k
	f.created = append(f.created, k)
	return k, err
}

func (f *fakeService) FindKeys(_ context.Context, tenant, name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id, k := range f.keys {
		if k.Tenant == tenant && k.Name == name {
			ids = append(ids, id)
		}
	}
	return ids, f.fail["FindKeys"]
}

func (f *fakeService) DeleteKey(_ context.Context, tenant, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["DeleteKey"]; err != nil {
		return err
	}
	if k, ok := f.keys[id]; ok && k.Tenant == tenant {
		delete(f.keys, id)
	}
	return nil
}

func (f *fakeService) Close() { f.closed++ }

func (f *fakeService) ids() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id := range f.keys {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

const rootSecret = "sb_00000000000000ff_" + "1111111111111111111111111111111111111111111111111111111111111111"

// mount is an engine under test.
type mount struct {
	*backend
	t       *testing.T
	storage logical.Storage
	service *fakeService
	clock   time.Time
}

func newMount(t *testing.T) *mount {
	t.Helper()
	m := &mount{t: t, storage: &logical.InmemStorage{}, clock: time.Now(), service: &fakeService{
		self: apiKey{ID: keyID(rootSecret), Tenant: "ops", Roles: []string{"key-maker"}}, keys: map[string]apiKey{}, fail: map[string]error{},
	}}
	m.service.keys[keyID(rootSecret)] = m.service.self
	b, err := newBackend(func(c *config) (service, error) {
		if strings.Contains(c.Address, "nobody") {
			return nil, fmt.Errorf("no such address")
		}
		return m.service, nil
	})
	must.NoError(t, err)
	conf := &logical.BackendConfig{
		Logger: hclog.New(&hclog.LoggerOptions{Output: io.Discard}), StorageView: m.storage,
		System: &logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour, PluginEnvironment: &logical.PluginEnvironment{VaultVersion: "1.21"}},
	}
	must.NoError(t, b.Setup(t.Context(), conf))
	b.now = func() time.Time { return m.clock }
	must.NoError(t, b.initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))
	m.backend = b
	return m
}

// configured is a mount with a configuration and the role dev.
func configured(t *testing.T) *mount {
	t.Helper()
	m := newMount(t)
	m.ok(logical.CreateOperation, "config", "address", "http://127.0.0.1:7300", "api_key", rootSecret)
	m.ok(logical.CreateOperation, "roles/dev", "tenant", "acme", "roles", "developer,viewer", "ttl", "30m", "max_ttl", "2h")
	return m
}

func (m *mount) request(op logical.Operation, path string, fields ...any) *logical.Request {
	data := map[string]any{}
	for i := 0; i+1 < len(fields); i += 2 {
		name, _ := fields[i].(string)
		data[name] = fields[i+1]
	}
	return &logical.Request{Operation: op, Path: path, Data: data, Storage: m.storage}
}

func (m *mount) do(op logical.Operation, path string, fields ...any) (*logical.Response, error) {
	return m.HandleRequest(m.t.Context(), m.request(op, path, fields...))
}

// ok does what has to succeed.
func (m *mount) ok(op logical.Operation, path string, fields ...any) *logical.Response {
	m.t.Helper()
	resp, err := m.do(op, path, fields...)
	must.NoError(m.t, err, must.Sprint(op, path))
	if resp != nil {
		must.NoError(m.t, resp.Error(), must.Sprint(op, path))
	}
	return resp
}

// refuses does what the user is told to be wrong.
func (m *mount) refuses(want string, op logical.Operation, path string, fields ...any) {
	m.t.Helper()
	resp, err := m.do(op, path, fields...)
	if err == nil && resp != nil {
		err = resp.Error()
	}
	must.ErrorContains(m.t, err, want, must.Sprint(op, path, fields))
}

func (m *mount) wal() []string {
	m.t.Helper()
	names, err := m.storage.List(m.t.Context(), "wal/")
	must.NoError(m.t, err)
	return names
}

func TestFactory_needsNoStorage(t *testing.T) {
	// As Vault calls it to learn what kind of plugin it is.
	b, err := Factory(t.Context(), &logical.BackendConfig{})
	must.NoError(t, err)
	must.Eq(t, logical.TypeLogical, b.Type())
	_, err = Factory(t.Context(), nil)
	must.Error(t, err)
}

func TestBackend_saysItsVersionAsVaultSpellsIt(t *testing.T) {
	m := newMount(t)
	must.Eq(t, "v"+version.Version, m.PluginVersion().Version)
}

func TestBackend_twoMountsShareNothing(t *testing.T) {
	a, b := configured(t), configured(t)
	one := a.ok(logical.ReadOperation, "token-keys")
	two := b.ok(logical.ReadOperation, "jwks")
	must.Eq(t, any(uint32(1)), one.Data["latest_version"])
	jwks, ok := two.Data[logical.HTTPRawBody].([]byte)
	must.True(t, ok)
	other, _ := a.ok(logical.ReadOperation, "jwks").Data[logical.HTTPRawBody].([]byte)
	must.NotEq(t, string(other), string(jwks))
	a.ok(logical.DeleteOperation, "config")
	must.NotNil(t, b.ok(logical.ReadOperation, "config"))
}

func TestPaths_haveHelpNamesAndUniqueOperations(t *testing.T) {
	m := newMount(t)
	seen := map[string]string{}
	for _, p := range m.Paths {
		must.NotEq(t, "", p.HelpSynopsis, must.Sprint(p.Pattern))
		must.NotEq(t, "", p.HelpDescription, must.Sprint(p.Pattern))
		must.NotNil(t, p.DisplayAttrs, must.Sprint(p.Pattern))
		for name, f := range p.Fields {
			must.NotEq(t, "", f.Description, must.Sprint(p.Pattern, name))
		}
		for op, h := range p.Operations {
			props := h.Properties()
			must.NotEq(t, "", props.Summary, must.Sprint(p.Pattern, op))
			must.NotNil(t, props.DisplayAttrs, must.Sprint(p.Pattern, op))
			name := props.DisplayAttrs.OperationVerb + "-" + props.DisplayAttrs.OperationSuffix
			if path, ok := seen[name]; ok && path != p.Pattern {
				t.Errorf("%s and %s are both called %s", path, p.Pattern, name)
			}
			seen[name] = p.Pattern
		}
	}
	for _, path := range []string{
		"", "config", "config/rotate-root", "roles", "roles/x", "creds/x", "token/x", "token-keys", "token-keys/rotate", "jwks",
		"url-keys", "url-keys/x", "url-keys/x/rotate", "url-keys/x/sign", "url-keys/x/verify", "url-keys/x/export",
	} {
		resp := m.ok(logical.HelpOperation, path)
		must.NotNil(t, resp, must.Sprint(path))
		must.NotEq(t, "", resp.Data["help"], must.Sprint(path))
	}
	must.Eq(t, []string{"jwks"}, m.SpecialPaths().Unauthenticated)
}

func TestPaths_withoutAConfiguration(t *testing.T) {
	m := newMount(t)
	must.Nil(t, m.ok(logical.ReadOperation, "config"))
	m.ok(logical.CreateOperation, "roles/dev", "tenant", "acme")
	for _, path := range []string{"creds/dev", "token/dev"} {
		m.refuses("not configured", logical.ReadOperation, path)
	}
	m.refuses("not configured", logical.UpdateOperation, "config/rotate-root")
	must.SliceEmpty(t, m.wal())
}

func TestConfig_keepsWhatIsNotGivenAndNeverShowsTheKey(t *testing.T) {
	m := configured(t)
	m.ok(logical.UpdateOperation, "config", "audience", "other")
	resp := m.ok(logical.ReadOperation, "config")
	must.Eq(t, map[string]any{
		"address": "http://127.0.0.1:7300", "api_key_id": keyID(rootSecret), "ca": "", "issuer": defaultIssuer, "audience": "other",
		"token_key_rotation_period": int64(86400),
	}, resp.Data)
	exists, err := m.configExists(t.Context(), m.request(logical.ReadOperation, "config"), nil)
	must.NoError(t, err)
	must.True(t, exists)
	m.ok(logical.DeleteOperation, "config")
	must.Nil(t, m.ok(logical.ReadOperation, "config"))
}

func TestConfig_refusesByTheNameOfTheField(t *testing.T) {
	m := newMount(t)
	for _, tc := range []struct {
		want   string
		fields []any
	}{
		{"address is missing", []any{"api_key", rootSecret}},
		{"address:", []any{"address", "127.0.0.1", "api_key", rootSecret}},
		{"address:", []any{"address", "unix:///x", "api_key", rootSecret}},
		{"no such address", []any{"address", "http://nobody", "api_key", rootSecret}},
		{"api_key is missing", []any{"address", "http://a"}},
		{"api_key is no API key", []any{"address", "http://a", "api_key", "hunter2"}},
		{"ca holds no certificate", []any{"address", "http://a", "api_key", rootSecret, "ca", "x"}},
		{"issuer has 0 bytes", []any{"address", "http://a", "api_key", rootSecret, "issuer", ""}},
		{"audience has 257 bytes", []any{"address", "http://a", "api_key", rootSecret, "audience", strings.Repeat("a", 257)}},
		{"token_key_rotation_period is 1m0s", []any{"address", "http://a", "api_key", rootSecret, "token_key_rotation_period", "1m"}},
	} {
		m.refuses(tc.want, logical.CreateOperation, "config", tc.fields...)
		must.Nil(t, m.ok(logical.ReadOperation, "config"))
	}
}

func TestInvalidate_makesAClientOfTheNewConfiguration(t *testing.T) {
	m := configured(t)
	m.ok(logical.ReadOperation, "creds/dev")
	before := m.service.closed
	m.InvalidateKey(t.Context(), "role/dev")
	must.Eq(t, before, m.service.closed)
	m.InvalidateKey(t.Context(), configKey)
	must.Eq(t, before+1, m.service.closed)
}

func TestRoles_areKeptListedAndChecked(t *testing.T) {
	m := configured(t)
	must.Eq(t, map[string]any{
		"tenant": "acme", "roles": []string{"developer", "viewer"}, "kind": "any", "ttl": int64(1800), "max_ttl": int64(7200),
	}, m.ok(logical.ReadOperation, "roles/dev").Data)
	m.ok(logical.UpdateOperation, "roles/DEV", "kind", "token")
	must.Eq(t, any("token"), m.ok(logical.ReadOperation, "roles/dev").Data["kind"])
	must.Eq(t, any("acme"), m.ok(logical.ReadOperation, "roles/dev").Data["tenant"])
	m.ok(logical.CreateOperation, "roles/ci", "tenant", "acme")
	must.Eq(t, any([]string{"ci", "dev"}), m.ok(logical.ListOperation, "roles/").Data["keys"])
	resp := m.ok(logical.CreateOperation, "roles/long", "tenant", "acme", "max_ttl", "48h")
	must.SliceNotEmpty(t, resp.Warnings)
	m.ok(logical.DeleteOperation, "roles/ci")
	must.Nil(t, m.ok(logical.ReadOperation, "roles/ci"))

	for _, tc := range []struct {
		want   string
		fields []any
	}{
		{"tenant is missing", nil},
		{"tenant ", []any{"tenant", "a/b"}},
		{"tenant ", []any{"tenant", strings.Repeat("a", 64)}},
		{"kind ", []any{"tenant", "a", "kind", "password"}},
		{"ttl 2h0m0s is longer than max_ttl 1h0m0s", []any{"tenant", "a", "ttl", "2h", "max_ttl", "1h"}},
		{"negative value", []any{"tenant", "a", "ttl", "-1"}},
		{"roles:", []any{"tenant", "a", "roles", "admin,../x"}},
		{"roles has 65 names", []any{"tenant", "a", "roles", strings.Join(names(65), ",")}},
	} {
		m.refuses(tc.want, logical.CreateOperation, "roles/bad", tc.fields...)
		must.Nil(t, m.ok(logical.ReadOperation, "roles/bad"))
	}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("r%d", i)
	}
	return out
}

func TestKeyID_knowsBothSpellings(t *testing.T) {
	id, secret := "0123456789abcdef", strings.Repeat("a", 64)
	for key, want := range map[string]string{
		"sb_" + id + "_" + secret: id, "e2b_" + id + secret: id,
		"": "", "sb_": "", "sb_" + id + secret: "", "sb_" + id + "_" + secret + "0": "", "e2b_" + strings.ToUpper(id) + secret: "", "x" + id: "",
	} {
		must.Eq(t, want, keyID(key), must.Sprint(key))
	}
	must.Eq(t, "e2b_"+id+secret, e2bSpelling("sb_"+id+"_"+secret))
}

func TestRefused_isTrueOnlyWhereNothingWasMade(t *testing.T) {
	must.True(t, refused(api.Errorf(http.StatusForbidden, api.CodeUnauthorized, "no")))
	for _, err := range []error{nil, api.ErrUnreachable, api.Errorf(http.StatusInternalServerError, api.CodeInternal, "x"), context.DeadlineExceeded} {
		must.False(t, refused(err), must.Sprint(err))
	}
}
