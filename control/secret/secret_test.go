package secret_test

import (
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/secret"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func service(t *testing.T) (*secret.Service, *state.Server, *local.Ring) {
	t.Helper()
	st, err := state.Open(state.Config{})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, st.Close()) })
	must.NoError(t, st.WaitLeader(t.Context()))
	for _, id := range []string{"acme", "other"} {
		_, err := st.Apply(t.Context(), &state.TenantPut{Tenant: state.Tenant{ID: id, Name: id}})
		must.NoError(t, err)
	}
	ring, err := local.OpenRing(filepath.Join(t.TempDir(), "keys.json"))
	must.NoError(t, err)
	return secret.New(st, ring, nil), st, ring
}

func rule(value string) []nodeapi.NetworkRule {
	return []nodeapi.NetworkRule{{Domain: "api.example.com", Headers: map[string]string{"Authorization": value}}}
}

func TestSecrets_areKeptEncryptedAndByTenant(t *testing.T) {
	s, st, _ := service(t)
	made, err := s.Create(t.Context(), "acme", "key:k", "API-Key", "hunter2", map[string]string{"a": "b"})
	must.NoError(t, err)
	must.Eq(t, "api-key", made.Name)
	must.Eq(t, uint64(1), made.Version)
	must.StrHasPrefix(t, "sec_", made.ID)
	kept, err := st.Secret("acme", made.ID)
	must.NoError(t, err)
	must.StrNotContains(t, string(kept.Sealed), "hunter2")

	_, err = s.Create(t.Context(), "acme", "key:k", "api-key", "x", nil)
	must.Eq(t, 409, api.StatusOf(err))
	_, err = s.Get("other", made.ID)
	must.True(t, api.IsNotFound(err))
	_, err = s.Update(t.Context(), "other", "key:k", made.ID, "x", nil)
	must.True(t, api.IsNotFound(err))
	_, err = s.Delete(t.Context(), "other", made.ID)
	must.True(t, api.IsNotFound(err))
	for _, value := range []string{"", strings.Repeat("x", secret.MaxValue+1)} {
		_, err = s.Create(t.Context(), "acme", "key:k", "another", value, nil)
		must.Eq(t, 400, api.StatusOf(err))
	}
	_, err = s.Create(t.Context(), "acme", "key:k", "a b", "x", nil)
	must.ErrorContains(t, err, "name")

	again, err := s.Update(t.Context(), "acme", "key:j", "api-key", "hunter3", nil)
	must.NoError(t, err)
	must.Eq(t, uint64(2), again.Version)
	must.Eq(t, map[string]string{"a": "b"}, again.Metadata)
	must.Eq(t, "key:k", again.CreatedBy)
	_, err = s.Delete(t.Context(), "acme", "API-KEY")
	must.NoError(t, err)
	_, err = s.Get("acme", "api-key")
	must.True(t, api.IsNotFound(err))
}

func TestSecrets_ofManyUpdatesEachIsAVersion(t *testing.T) {
	s, _, _ := service(t)
	_, err := s.Create(t.Context(), "acme", "", "n", "0", nil)
	must.NoError(t, err)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = s.Update(t.Context(), "acme", "", "n", "v", nil) })
	}
	wg.Wait()
	for _, err := range errs {
		must.NoError(t, err)
	}
	got, err := s.Get("acme", "n")
	must.NoError(t, err)
	must.Eq(t, uint64(9), got.Version)
}

func TestFill_putsValuesWhereTheyAreNamed(t *testing.T) {
	s, _, ring := service(t)
	for name, value := range map[string]string{"a": "one", "b": "${e2b.secrets.a}", "broken": "line\nbreak", "long": strings.Repeat("x", secret.MaxValue)} {
		_, err := s.Create(t.Context(), "acme", "", name, value, nil)
		must.NoError(t, err)
	}
	for text, want := range map[string]struct {
		value string
		lacks []string
	}{
		"plain":                                   {"plain", nil},
		"Bearer ${e2b.secrets.a}":                 {"Bearer one", nil},
		"${e2b.secrets.A}${e2b.secrets.a}":        {"oneone", nil},
		"${e2b.secrets.b}":                        {"${e2b.secrets.a}", nil}, // what a value says is no placeholder
		"${e2b.secrets.none} ${e2b.secrets.a}":    {"${e2b.secrets.none} ${e2b.secrets.a}", []string{"secrets.none"}},
		"${e2b.identity.tokens.aws}":              {"${e2b.identity.tokens.aws}", []string{"identity.tokens.aws"}},
		"${e2b.secrets.broken}":                   {"${e2b.secrets.broken}", []string{"header authorization"}},
		"${e2b.secrets.long}${e2b.secrets.long} ": {"${e2b.secrets.long}${e2b.secrets.long} ", []string{"header authorization"}},
		"${e2b.secrets.}":                         {"${e2b.secrets.}", []string{"secrets."}},
		"${other}":                                {"${other}", nil},
	} {
		out, _, err := s.Fill("acme", rule(text))
		must.NoError(t, err)
		must.Eq(t, want.value, out[0].Headers["Authorization"], must.Sprint(text))
		must.Eq(t, want.lacks, out[0].Lacks, must.Sprint(text))
	}
	_, none, err := s.Fill("acme", rule("plain"))
	must.NoError(t, err)
	must.Eq(t, "", none)
	out, lacking, err := s.Fill("other", rule("${e2b.secrets.a}"))
	must.NoError(t, err)
	must.Eq(t, []string{"secrets.a"}, out[0].Lacks, must.Sprint("another tenant's"))
	_, first, err := s.Fill("acme", rule("${e2b.secrets.a}"))
	must.NoError(t, err)
	must.NotEq(t, lacking, first)
	must.StrNotContains(t, first, "one")
	_, err = s.Update(t.Context(), "acme", "", "a", "two", nil)
	must.NoError(t, err)
	out, second, err := s.Fill("acme", rule("${e2b.secrets.a}"))
	must.NoError(t, err)
	must.NotEq(t, first, second)
	must.Eq(t, "two", out[0].Headers["Authorization"])

	// A key that is revoked takes its secrets along, until they are set again.
	now, err := ring.Current()
	must.NoError(t, err)
	must.NoError(t, ring.Revoke(t.Context(), now.Version))
	out, _, err = s.Fill("acme", rule("${e2b.secrets.a}"))
	must.NoError(t, err)
	must.Eq(t, []string{"secrets.a"}, out[0].Lacks)
	_, err = s.Update(t.Context(), "acme", "", "a", "three", nil)
	must.NoError(t, err)
	out, _, err = s.Fill("acme", rule("${e2b.secrets.a}"))
	must.NoError(t, err)
	must.Eq(t, "three", out[0].Headers["Authorization"])
	must.Eq(t, []string{"a", "b"}, secret.Names("${e2b.secrets.B} ${e2b.secrets.a} ${e2b.secrets.a} ${e2b.identity.x}"))
}
