package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// issuer publishes keys over HTTP, and signs.
type issuer struct {
	url  string
	keys atomic.Pointer[jose.JSONWebKeySet]
	gets atomic.Int64
	down atomic.Bool

	ed  ed25519.PrivateKey
	ec  *ecdsa.PrivateKey
	rsa *rsa.PrivateKey
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{}
	_, i.ed, _ = ed25519.GenerateKey(rand.Reader)
	i.ec, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	var err error
	i.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	must.NoError(t, err)
	i.keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: i.ed.Public(), KeyID: "ed", Use: "sig"}, {Key: i.ec.Public(), KeyID: "ec"}, {Key: i.rsa.Public(), KeyID: "rsa", Algorithm: "RS256"},
	}})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.gets.Add(1)
		if i.down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.url, "jwks_uri": i.url + "/jwks"})
			return
		}
		_ = json.NewEncoder(w).Encode(i.keys.Load())
	}))
	t.Cleanup(srv.Close)
	i.url = srv.URL
	return i
}

// claims are good ones; change alters them.
func (i *issuer) claims(change func(map[string]any)) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": i.url, "aud": "soulbox", "sub": "alice", "exp": now.Add(time.Hour).Unix(), "nbf": now.Unix(), "iat": now.Unix(),
		"tenant": "acme", "roles": []string{"viewer"}, "groups": []string{"dev", "ops"},
	}
	if change != nil {
		change(c)
	}
	return c
}

func (i *issuer) sign(t testing.TB, alg jose.SignatureAlgorithm, kid string, key any, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	must.NoError(t, err)
	out, err := jwt.Signed(s).Claims(claims).Serialize()
	must.NoError(t, err)
	return out
}

// forge makes a token of a header as it stands, signed with Ed25519.
func (i *issuer) forge(header string, claims map[string]any) string {
	body, _ := json.Marshal(claims)
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(body)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(i.ed, []byte(text)))
}

func (i *issuer) link(t testing.TB, change func(*TokenConfig)) *TokenLink {
	t.Helper()
	cfg := TokenConfig{
		Name: "corp", Kind: KindJWT, Issuer: i.url, Audiences: []string{"soulbox"}, Keys: NewRemoteKeys(i.url+"/jwks", "", nil),
		TenantClaim: "tenant", RolesClaim: "roles", GroupsClaim: "groups",
	}
	if change != nil {
		change(&cfg)
	}
	l, err := NewTokenLink(cfg, nil)
	must.NoError(t, err)
	return l
}

func TestToken_goodOnesOfEveryAlgorithm(t *testing.T) {
	i := newIssuer(t)
	for name, keys := range map[string]KeySet{"by URL": NewRemoteKeys(i.url+"/jwks", "", nil), "by discovery": NewRemoteKeys("", i.url, nil)} {
		l := i.link(t, func(c *TokenConfig) { c.Keys = keys })
		for _, tok := range []string{
			i.sign(t, jose.EdDSA, "ed", i.ed, i.claims(nil)), i.sign(t, jose.ES256, "ec", i.ec, i.claims(nil)), i.sign(t, jose.RS256, "rsa", i.rsa, i.claims(nil)),
		} {
			for range 2 { // the second one from memory
				who, err := NewChain(l).Authenticate(t.Context(), Credentials{Bearer: tok})
				must.NoError(t, err, must.Sprint(name))
				must.Eq(t, "jwt:corp/alice", who.User())
				must.Eq(t, "acme", who.Tenant)
				must.Eq(t, []string{"viewer"}, who.Roles)
				must.Eq(t, "acme", who.Scope)
				must.Eq(t, []string{"corp/dev", "corp/ops"}, who.Groups)
				must.SliceContains(t, who.Subjects, state.Subject{Kind: state.SubjectGroup, ID: "corp/ops"})
			}
		}
	}
}

// C09: whatever is wrong with a token, the answer is 401, and the same one.
func TestC09_tokensThatAreNoGood(t *testing.T) {
	i, other := newIssuer(t), newIssuer(t)
	l := i.link(t, nil)
	claims := func(name string, v any) map[string]any {
		return i.claims(func(c map[string]any) {
			if c[name] = v; v == nil {
				delete(c, name)
			}
		})
	}
	ed := func(c map[string]any) string { return i.sign(t, jose.EdDSA, "ed", i.ed, c) }
	good := ed(i.claims(nil))
	parts := strings.Split(good, ".")
	body, _ := json.Marshal(i.claims(nil))
	payload := base64.RawURLEncoding.EncodeToString(body)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"ed"}`)) + "." + payload + "."
	der, err := x509.MarshalPKIXPublicKey(i.rsa.Public())
	must.NoError(t, err)
	swap := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","kid":"rsa"}`)) + "." + payload
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	mac.Write([]byte(swap))
	swap += "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	past, future := time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	want := ""
	for name, token := range map[string]string{
		"alg none":                    none,
		"alg none, with a signature":  none + parts[2],
		"HMAC with the public key":    swap,
		"kid is a path":               i.forge(`{"alg":"EdDSA","kid":"../../../../dev/null"}`, i.claims(nil)),
		"kid is SQL":                  i.forge(`{"alg":"EdDSA","kid":"' UNION SELECT 'x"}`, i.claims(nil)),
		"kid is a number":             i.forge(`{"alg":"EdDSA","kid":7}`, i.claims(nil)),
		"kid is huge":                 i.forge(`{"alg":"EdDSA","kid":"`+strings.Repeat("k", 4000)+`"}`, i.claims(nil)),
		"kid of another key":          i.sign(t, jose.EdDSA, "rsa", i.ed, i.claims(nil)),
		"alg that its key is not for": i.sign(t, jose.PS256, "rsa", i.rsa, i.claims(nil)),
		"alg twice":                   i.forge(`{"alg":"none","alg":"EdDSA","kid":"ed"}`, i.claims(nil)),
		"brings its own key":          i.forge(`{"alg":"EdDSA","kid":"ed","jwk":{"kty":"OKP"}}`, i.claims(nil)),
		"names a place for its key":   i.forge(`{"alg":"EdDSA","kid":"ed","jku":"http://127.0.0.1/"}`, i.claims(nil)),
		"brings a certificate":        i.forge(`{"alg":"EdDSA","kid":"ed","x5c":[]}`, i.claims(nil)),
		"crit that nobody knows":      i.forge(`{"alg":"EdDSA","kid":"ed","crit":["x"],"x":1}`, i.claims(nil)),
		"crit b64":                    i.forge(`{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}`, i.claims(nil)),
		"key of another issuer":       other.sign(t, jose.EdDSA, "ed", other.ed, i.claims(nil)),
		"another issuer":              ed(claims("iss", "https://else.where")),
		"no issuer":                   ed(claims("iss", nil)),
		"another audience":            ed(claims("aud", "else")),
		"two audiences":               ed(claims("aud", []string{"soulbox", "else"})),
		"no audience":                 ed(claims("aud", nil)),
		"empty audiences":             ed(claims("aud", []string{})),
		"expired":                     ed(claims("exp", past)),
		"no expiry":                   ed(claims("exp", nil)),
		"expiry as text":              ed(claims("exp", "tomorrow")),
		"not yet":                     ed(claims("nbf", future)),
		"issued in the future":        ed(claims("iat", future)),
		"no subject":                  ed(claims("sub", nil)),
		"subject is no text":          ed(claims("sub", []string{"alice"})),
		"subject is huge":             ed(claims("sub", strings.Repeat("a", 1000))),
		"tenant is no id":             ed(claims("tenant", "../acme")),
		"tenant is everywhere":        ed(claims("tenant", "*")),
		"no tenant":                   ed(claims("tenant", nil)),
		"changed payload":             parts[0] + "." + payload[:len(payload)-4] + "AAAA." + parts[2],
		"changed signature":           parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		"cut":                         good[:len(good)-10],
		"no signature":                parts[0] + "." + parts[1] + ".",
		"four parts":                  good + ".x",
		"huge":                        ed(claims("x", strings.Repeat("a", MaxToken))),
		"payload is no object":        parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("[1]")) + "." + parts[2],
		"header is no JSON":           "eyJ" + "." + parts[1] + "." + parts[2],
		"nested deeply":               i.forge(`{"alg":"EdDSA","kid":"ed"}`, claims("x", nested(200))),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewChain(l).Authenticate(t.Context(), Credentials{Bearer: token})
			if name == "nested deeply" && err == nil {
				return // harmless: it is signed by the issuer, and bounded
			}
			must.Eq(t, 401, api.StatusOf(err), must.Sprint(err))
			if want == "" {
				want = err.Error()
			}
			must.Eq(t, want, err.Error(), must.Sprint("a refusal tells nothing about why"))
		})
	}
	_, err = NewChain(l).Authenticate(t.Context(), Credentials{Bearer: good})
	must.NoError(t, err)
}

func nested(n int) any {
	var v any = 1
	for range n {
		v = []any{v}
	}
	return v
}

func TestToken_skewIsBounded(t *testing.T) {
	i := newIssuer(t)
	l := i.link(t, func(c *TokenConfig) { c.Leeway = 10 * time.Second })
	for offset, good := range map[time.Duration]bool{-5 * time.Second: true, -15 * time.Second: false} {
		tok := i.sign(t, jose.EdDSA, "ed", i.ed, i.claims(func(c map[string]any) { c["exp"] = time.Now().Add(offset).Unix() }))
		_, err := l.Authenticate(t.Context(), &Credentials{Bearer: tok})
		must.Eq(t, good, err == nil, must.Sprint(offset))
	}
	_, err := NewTokenLink(TokenConfig{Name: "x", Keys: &StaticKeys{}, Issuer: "i", Audiences: []string{"a"}, Leeway: time.Hour}, nil)
	must.ErrorContains(t, err, "leeway")
}

func TestKeys_rotateAndAreRevoked(t *testing.T) {
	i := newIssuer(t)
	keys := NewRemoteKeys(i.url+"/jwks", "", nil)
	var skip atomic.Int64
	keys.now = func() time.Time { return time.Now().Add(time.Duration(skip.Load())) }
	l := i.link(t, func(c *TokenConfig) { c.Keys = keys })
	tok := i.sign(t, jose.EdDSA, "ed", i.ed, i.claims(nil))
	check := func(token string) error {
		_, err := l.Authenticate(t.Context(), &Credentials{Bearer: token})
		return err
	}
	must.NoError(t, check(tok))
	must.Eq(t, 1, i.gets.Load())
	for range 50 { // unknown key ids do not become requests to the issuer
		must.Error(t, check(i.sign(t, jose.EdDSA, "new", i.ed, i.claims(nil))))
	}
	must.Eq(t, 1, i.gets.Load())
	// A new key beside the old one is found once the pause is over.
	_, next, _ := ed25519.GenerateKey(rand.Reader)
	i.keys.Store(&jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: next.Public(), KeyID: "new"}}})
	skip.Store(int64(keysPause))
	must.NoError(t, check(i.sign(t, jose.EdDSA, "new", next, i.claims(nil))))
	// The old one was taken out: what was verified with it is no more.
	must.Error(t, check(tok))
	// The issuer is away: what is known serves for a while, then nothing does.
	i.down.Store(true)
	now := i.sign(t, jose.EdDSA, "new", next, i.claims(nil))
	skip.Store(int64(keysFresh + 2*keysPause))
	must.NoError(t, check(now))
	skip.Store(int64(keysHold + time.Minute))
	must.Eq(t, 503, api.StatusOf(check(now)))
	i.down.Store(false)
	skip.Add(int64(keysPause))
	must.NoError(t, check(now))
}

func TestToken_grantsByGroupAndClaim(t *testing.T) {
	i := newIssuer(t)
	l := i.link(t, func(c *TokenConfig) {
		c.TenantClaim, c.RolesClaim = "", ""
		c.Require = map[string]string{"email": "*@acme.example"}
		c.Grants = []Grant{
			{Groups: []string{"ops"}, Global: true, Tenant: "default", Roles: []string{"operator"}},
			{Groups: []string{"dev*"}, Tenant: "acme", Roles: []string{"developer"}},
			{Claims: map[string]string{"sub": "bob"}, Tenant: "acme", Roles: []string{"viewer"}},
		}
	})
	for name, tc := range map[string]struct {
		claims map[string]any
		tenant string
		scope  string
		roles  []string
	}{
		"group":            {map[string]any{"groups": []string{"developers"}}, "acme", "acme", []string{"developer"}},
		"two grants":       {map[string]any{"groups": []string{"dev"}, "sub": "bob"}, "acme", "acme", []string{"developer", "viewer"}},
		"everything first": {map[string]any{"groups": []string{"dev", "ops"}}, "default", state.Everywhere, []string{"operator"}},
		"roles it claims":  {map[string]any{"groups": []string{"dev"}, "roles": []string{"admin"}}, "acme", "acme", []string{"developer"}},
		"none":             {map[string]any{"groups": []string{"sales"}}, "", "", nil},
		"not required":     {map[string]any{"groups": []string{"dev"}, "email": "a@else.example"}, "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			tok := i.sign(t, jose.EdDSA, "ed", i.ed, i.claims(func(c map[string]any) {
				c["email"] = "a@acme.example"
				for k, v := range tc.claims {
					c[k] = v
				}
			}))
			who, err := l.Authenticate(t.Context(), &Credentials{Bearer: tok})
			must.Eq(t, tc.tenant == "", err != nil)
			must.Eq(t, tc.tenant, who.Tenant)
			must.Eq(t, tc.scope, who.Scope)
			must.Eq(t, tc.roles, who.Roles)
		})
	}
}

func TestToken_workloadsAreTheirJob(t *testing.T) {
	i := newIssuer(t)
	l := i.link(t, func(c *TokenConfig) {
		c.Name, c.Kind, c.Issuer, c.TenantClaim = "nomad", KindWorkload, "", ""
		c.Grants = []Grant{{Claims: map[string]string{"nomad_namespace": "ci", "nomad_job_id": "build*"}, Tenant: "acme", Roles: []string{"developer"}}}
	})
	token := func(ns, job string) string {
		return i.sign(t, jose.RS256, "rsa", i.rsa, i.claims(func(c map[string]any) {
			delete(c, "iss")
			c["sub"], c["nomad_namespace"], c["nomad_job_id"] = "global:ci:build:main:main:soulbox", ns, job
		}))
	}
	who, err := l.Authenticate(t.Context(), &Credentials{Bearer: token("ci", "build/1")})
	must.NoError(t, err)
	must.Eq(t, "workload:nomad/ci/build/1", who.User())
	must.Eq(t, state.Subject{Kind: state.SubjectService, ID: "nomad/ci/build/1"}, who.Subjects[0])
	for _, tok := range []string{token("default", "build"), token("ci", "web"), token("", "build"), token("ci/x", "build"), i.sign(t, jose.RS256, "rsa", i.rsa, i.claims(nil))} {
		_, err := l.Authenticate(t.Context(), &Credentials{Bearer: tok})
		must.Error(t, err)
	}
}

func TestParseKeys(t *testing.T) {
	i := newIssuer(t)
	der, err := x509.MarshalPKIXPublicKey(i.ec.Public())
	must.NoError(t, err)
	keys, err := ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	must.NoError(t, err)
	l := i.link(t, func(c *TokenConfig) { c.Keys = keys })
	_, err = l.Authenticate(t.Context(), &Credentials{Key: i.sign(t, jose.ES256, "any", i.ec, i.claims(nil))})
	must.NoError(t, err)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		der, _ = x509.MarshalPKIXPublicKey(weak.Public())
		_, err = ParseKeys(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		must.ErrorContains(t, err, "2048")
	}
	for _, bad := range []string{"", "{}", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		_, err := ParseKeys([]byte(bad))
		must.Error(t, err, must.Sprint(bad))
	}
}

func FuzzTokenLink(f *testing.F) {
	i := newIssuer(f)
	set, err := json.Marshal(i.keys.Load())
	must.NoError(f, err)
	keys, err := ParseKeys(set)
	must.NoError(f, err)
	l := i.link(f, func(c *TokenConfig) { c.Keys = keys })
	good := i.sign(f, jose.EdDSA, "ed", i.ed, i.claims(nil))
	f.Add(good)
	f.Add("ey..")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := l.Authenticate(t.Context(), &Credentials{Bearer: token}); err == nil && token != good {
			t.Fatalf("%q is taken for a token", token)
		}
	})
}

func BenchmarkToken_known(b *testing.B) {
	i := newIssuer(b)
	l := i.link(b, nil)
	c := &Credentials{Bearer: i.sign(b, jose.EdDSA, "ed", i.ed, i.claims(nil))}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Authenticate(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	const times = 20_000
	text := []byte(c.Bearer)
	start := time.Now()
	for range times {
		sum := sha256.Sum256(text)
		copy(text, sum[:])
	}
	b.ReportMetric(float64(time.Since(start).Nanoseconds())/times, "floor-ns")
}
