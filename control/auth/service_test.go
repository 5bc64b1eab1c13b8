package auth_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t testing.TB) (*state.Server, *auth.Service) {
	t.Helper()
	s, err := state.Open(state.Config{})
	must.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	must.NoError(t, s.WaitLeader(ctx))
	for _, id := range []string{"acme", "other"} {
		_, err := s.Apply(ctx, &state.TenantPut{Tenant: state.Tenant{ID: id}})
		must.NoError(t, err)
	}
	return s, auth.New(s, nil)
}

func TestVerify_bothSpellingsAreOneKey(t *testing.T) {
	_, a := start(t)
	secret, key, err := a.Create(t.Context(), "acme", "ci", "")
	must.NoError(t, err)
	must.RegexMatch(t, regexp.MustCompile(`^sb_[0-9a-f]{16}_[0-9a-f]{64}$`), secret.Key())
	must.RegexMatch(t, regexp.MustCompile(`^e2b_[0-9a-f]{80}$`), secret.E2BKey())
	want := auth.Identity{
		Tenant: "acme", Kind: auth.KindKey, Subject: key.ID, KeyID: key.ID, Name: "ci", Link: auth.LinkKey,
		Roles: []string{"tenant-admin"}, Scope: "acme", Subjects: []state.Subject{{Kind: state.SubjectKey, ID: key.ID}},
	}
	for _, spelling := range []string{secret.Key(), secret.E2BKey()} {
		got, err := a.Verify(spelling)
		must.NoError(t, err)
		must.NotEq(t, "", got.Version)
		got.Version = ""
		must.Eq(t, want, got)
	}
}

func TestVerify_refuses(t *testing.T) {
	_, a := start(t)
	secret, _, err := a.Create(t.Context(), "acme", "ci", "")
	must.NoError(t, err)
	other, _, err := a.Create(t.Context(), "acme", "other", "")
	must.NoError(t, err)
	own, e2b := secret.Key(), secret.E2BKey()
	for name, key := range map[string]string{
		"empty":                    "",
		"no prefix":                strings.TrimPrefix(own, "sb_"),
		"wrong prefix":             "e2b_" + strings.TrimPrefix(own, "sb_"),
		"upper case":               strings.ToUpper(own),
		"upper case digits":        "e2b_" + strings.ToUpper(strings.TrimPrefix(e2b, "e2b_")),
		"short":                    own[:len(own)-1],
		"long":                     own + "0",
		"space":                    own + " ",
		"not hex":                  own[:len(own)-1] + "g",
		"wrong secret":             own[:len(own)-1] + flip(own[len(own)-1]),
		"secret of another key":    own[:20] + other.Key()[20:],
		"unknown id":               "sb_0000000000000000" + own[19:],
		"underscore in the middle": "e2b_" + strings.TrimPrefix(own, "sb_")[:80],
		"NUL":                      own[:10] + "\x00" + own[11:],
		"huge":                     strings.Repeat("e", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Verify(key)
			must.Error(t, err)
			must.Eq(t, 401, api.StatusOf(err))
			must.StrNotContains(t, err.Error(), own[20:])
		})
	}
}

func TestRevoke_countsAtOnceAndOnlyForItsTenant(t *testing.T) {
	_, a := start(t)
	secret, key, err := a.Create(t.Context(), "acme", "ci", "")
	must.NoError(t, err)
	must.Eq(t, 404, api.StatusOf(a.Revoke(t.Context(), "other", key.ID)))
	_, err = a.Verify(secret.Key())
	must.NoError(t, err)
	must.NoError(t, a.Revoke(t.Context(), "acme", key.ID))
	_, err = a.Verify(secret.Key())
	must.Eq(t, 401, api.StatusOf(err))
	must.Eq(t, 404, api.StatusOf(a.Revoke(t.Context(), "acme", key.ID)))
}

func TestSecret_isNowhereButInItsSpellings(t *testing.T) {
	s, a := start(t)
	secret, key, err := a.Create(t.Context(), "acme", "ci", "")
	must.NoError(t, err)
	digits := secret.E2BKey()[20:]
	for _, text := range []string{fmt.Sprint(secret), fmt.Sprintf("%+v", secret), fmt.Sprintf("%#v", secret), fmt.Sprintf("%x", key.Hash)} {
		must.StrNotContains(t, text, digits)
	}
	keys, err := s.Keys("acme")
	must.NoError(t, err)
	must.Len(t, 1, keys)
	must.StrNotContains(t, fmt.Sprintf("%x %v", keys[0].Hash, keys[0]), digits)
}

func TestCreate_refusesLongNames(t *testing.T) {
	_, a := start(t)
	_, _, err := a.Create(t.Context(), "acme", strings.Repeat("x", 1000), "")
	must.Eq(t, 400, api.StatusOf(err))
}

func TestBootstrap_onceInTheLifeOfACluster(t *testing.T) {
	_, a := start(t)
	path := filepath.Join(t.TempDir(), "key")
	secret, made, err := a.Bootstrap(t.Context(), path)
	must.NoError(t, err)
	must.True(t, made)
	info, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode())
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	who, err := a.Verify(strings.TrimSpace(string(b)))
	must.NoError(t, err)
	must.Eq(t, "key:"+secret.ID(), who.User())
	must.Eq(t, state.DefaultTenant, who.Tenant)
	must.Eq(t, []string{"admin"}, who.Roles)
	must.Eq(t, state.Everywhere, who.Scope)

	must.NoError(t, a.Revoke(t.Context(), who.Tenant, who.KeyID))
	_, made, err = a.Bootstrap(t.Context(), path)
	must.NoError(t, err)
	must.False(t, made, must.Sprint("a revoked bootstrap key does not come again"))
	after, err := os.ReadFile(path)
	must.NoError(t, err)
	must.Eq(t, b, after)
}

func flip(c byte) string {
	if c == '0' {
		return "1"
	}
	return "0"
}

// reportHash measures the floor of what looks a secret of n bytes up by its hash.
func reportHash(b *testing.B, n int) {
	b.Helper()
	text := make([]byte, n)
	const times = 20_000
	start := time.Now()
	for range times {
		sum := sha256.Sum256(text)
		copy(text, sum[:])
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/times, "floor-ns")
}

func BenchmarkVerify(b *testing.B) {
	_, a := start(b)
	secret, _, err := a.Create(context.Background(), "acme", "ci", "")
	must.NoError(b, err)
	key := secret.E2BKey()
	for b.Loop() {
		if _, err := a.Verify(key); err != nil {
			b.Fatal(err)
		}
	}
	reportHash(b, 32)
}

func TestPurge_forgetsKeysThatEndedLongAgo(t *testing.T) {
	s, a := start(t)
	day := 24 * time.Hour
	ends := map[string]time.Duration{"long ago": -8 * day, "lately": -day, "later": day, "never": 0}
	ids := map[string]string{}
	for name, in := range ends {
		k := state.Key{Tenant: "acme", Name: name}
		if in != 0 {
			k.ExpiresAt = time.Now().Add(in).UTC()
		}
		_, made, err := a.Make(t.Context(), k)
		must.NoError(t, err)
		ids[name] = made.ID
	}
	must.NoError(t, a.Purge(t.Context()))
	must.NoError(t, a.Purge(t.Context()))
	_, err := s.Key(ids["long ago"])
	must.ErrorIs(t, err, state.ErrNotFound)
	for _, name := range []string{"lately", "later", "never"} {
		_, err := s.Key(ids[name])
		must.NoError(t, err, must.Sprint(name))
	}
}
