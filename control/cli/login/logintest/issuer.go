// Package logintest is an issuer of OpenID Connect for tests: discovery, authorization code with PKCE, refresh tokens that are good once, and
// keys. It owns its HTTP server, and what it says can be bent. It never asks for a password: whoever opens its page is its one person.
package logintest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/shoenig/test/must"
)

// ClientID is the one client that an Issuer knows.
const ClientID = "soulbox-cli"

// Issuer is a running issuer. Its fields may be changed while Lock is held.
type Issuer struct {
	URL string

	sync.Mutex
	Claims  map[string]any // of ID tokens, beside the standard ones; one that is nil is left out
	TTL     time.Duration  // of ID tokens
	Deny    string         // the error that authorization ends with
	Refresh bool           // gives refresh tokens
	NoNew   bool           // renews without an ID token

	t       testing.TB
	key     *ecdsa.PrivateKey
	codes   map[string]grant
	refresh map[string]grant
	renewed int
	seen    url.Values // of the last authorization
}

type grant struct{ redirect, challenge, nonce string }

// New starts an issuer, which ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	i := &Issuer{t: t, key: key, TTL: time.Hour, Claims: map[string]any{}, codes: map[string]grant{}, refresh: map[string]grant{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "one", Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /authorize", i.authorize)
	mux.HandleFunc("POST /token", i.token)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	i.URL = srv.URL
	return i
}

// Renewed is how often a token was renewed.
func (i *Issuer) Renewed() int {
	i.Lock()
	defer i.Unlock()
	return i.renewed
}

// Seen is what the last authorization asked for.
func (i *Issuer) Seen() url.Values {
	i.Lock()
	defer i.Unlock()
	return i.seen
}

// Browse does what a person's browser does with the URL that a login shows: it follows the issuer back to the callback. It returns the
// callback's URL, status and text.
func Browse(t testing.TB, at string) (callback string, status int, body string) {
	t.Helper()
	resp, err := http.Get(at)
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp.Request.URL.String(), resp.StatusCode, string(b)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, code string) {
	answer(w, http.StatusBadRequest, map[string]string{"error": code})
}

func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || back.Scheme != "http" || back.Hostname() != "127.0.0.1" || q.Get("client_id") != ClientID || q.Get("response_type") != "code" ||
		q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || !strings.Contains(q.Get("scope"), "openid") {
		fail(w, "invalid_request")
		return
	}
	i.Lock()
	defer i.Unlock()
	i.seen = q
	out := url.Values{"state": {q.Get("state")}}
	if i.Deny != "" {
		out.Set("error", i.Deny)
		out.Set("error_description", "not today")
	} else {
		code := rand.Text()
		i.codes[code] = grant{back.String(), q.Get("code_challenge"), q.Get("nonce")}
		out.Set("code", code)
	}
	back.RawQuery = out.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	i.Lock()
	defer i.Unlock()
	id := r.FormValue("client_id")
	if user, _, ok := r.BasicAuth(); ok {
		id = user
	}
	if id != ClientID {
		fail(w, "invalid_client")
		return
	}
	var g grant
	switch r.FormValue("grant_type") {
	case "authorization_code":
		code := r.FormValue("code")
		known, ok := i.codes[code]
		delete(i.codes, code) // a code is good once
		sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
		if !ok || known.redirect != r.FormValue("redirect_uri") || known.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			fail(w, "invalid_grant")
			return
		}
		g = known
	case "refresh_token":
		token := r.FormValue("refresh_token")
		known, ok := i.refresh[token]
		delete(i.refresh, token) // as is a refresh token
		if !ok {
			fail(w, "invalid_grant")
			return
		}
		g, g.nonce = known, ""
		i.renewed++
	default:
		fail(w, "unsupported_grant_type")
		return
	}
	out := map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": int(i.TTL.Seconds())}
	if g.nonce != "" || !i.NoNew {
		out["id_token"] = i.sign(g.nonce)
	}
	if i.Refresh {
		token := rand.Text()
		i.refresh[token] = g
		out["refresh_token"] = token
	}
	answer(w, http.StatusOK, out)
}

// sign makes an ID token.
func (i *Issuer) sign(nonce string) string {
	now := time.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": "alice", "aud": ClientID, "iat": now.Unix(), "exp": now.Add(i.TTL).Unix(), "jti": rand.Text(),
	}
	if nonce != "" {
		claims["nonce"] = nonce
	}
	maps.Copy(claims, i.Claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "one"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		i.t.Error(err)
		return ""
	}
	out, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		i.t.Error(err)
	}
	return out
}
