package auth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// algorithms are those that tokens may be signed with. No token has a say in it.
var algorithms = []jose.SignatureAlgorithm{jose.EdDSA, jose.ES256, jose.RS256}

// Limits of tokens.
const (
	maxLeeway   = 5 * time.Minute
	maxTokens   = 10_000 // verified ones that are remembered
	maxGroups   = 200
	maxTokenKid = 256
)

// TokenConfig describes the tokens of one issuer.
type TokenConfig struct {
	Name      string // of the link
	Kind      Kind
	Issuer    string   // claim iss; empty only for workloads of Nomad, whose tokens may have none
	Audiences []string // a token must be for one of them, and for nobody else
	Keys      KeySet
	Leeway    time.Duration // for clocks that disagree; 30 s

	SubjectClaim string // sub
	NameClaim    string
	GroupsClaim  string
	TenantClaim  string
	RolesClaim   string // only for issuers that may say what somebody may do
	Tenant       string // where no claim and no grant says it

	Require map[string]string // claims that must be there, with a pattern for the value
	Grants  []Grant
}

// Grant gives roles to whoever's claims or groups match.
type Grant struct {
	Groups []string
	Claims map[string]string // claim → pattern; all must match
	Tenant string
	Roles  []string
	Global bool // the roles hold in all tenants and for the system
}

// TokenLink accepts signed tokens (JWT) of one issuer.
type TokenLink struct {
	cfg   TokenConfig
	now   func() time.Time
	known *lru.Cache[[sha256.Size]byte, verified]
}

type verified struct {
	who        Identity
	from, to   time.Time
	generation uint64
}

var _ Link = (*TokenLink)(nil)

// NewTokenLink returns a link. now is the clock; nil means time.Now.
func NewTokenLink(cfg TokenConfig, now func() time.Time) (*TokenLink, error) {
	switch {
	case cfg.Name == "" || cfg.Keys == nil:
		return nil, errors.New("a token link needs a name and keys")
	case cfg.Issuer == "" && cfg.Kind != KindWorkload:
		return nil, errors.New("issuer is missing")
	case len(cfg.Audiences) == 0:
		return nil, errors.New("audiences is missing: a token for anybody is a token for nobody")
	case cfg.Leeway < 0 || cfg.Leeway > maxLeeway:
		return nil, fmt.Errorf("leeway is %s, 0s to %s are allowed", cfg.Leeway, maxLeeway)
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = 30 * time.Second
	}
	if cfg.SubjectClaim == "" {
		cfg.SubjectClaim = "sub"
	}
	if now == nil {
		now = time.Now
	}
	known, err := lru.New[[sha256.Size]byte, verified](maxTokens)
	if err != nil {
		return nil, err
	}
	return &TokenLink{cfg: cfg, now: now, known: known}, nil
}

// Name implements Link.
func (l *TokenLink) Name() string { return l.cfg.Name }

// Authenticate implements Link.
func (l *TokenLink) Authenticate(ctx context.Context, c *Credentials) (Identity, error) {
	token := c.secret()
	if !looksLikeToken(token) || len(token) > MaxToken {
		return Identity{}, ErrNotMine
	}
	sum, now := sha256.Sum256([]byte(token)), l.now()
	if v, ok := l.known.Get(sum); ok && v.generation == l.cfg.Keys.Generation() && now.Before(v.to) && !now.Before(v.from) {
		return v.who, nil
	}
	v, err := l.verify(ctx, token, now)
	if err != nil {
		return Identity{}, err
	}
	l.known.Add(sum, v)
	return v.who, nil
}

func (l *TokenLink) verify(ctx context.Context, token string, now time.Time) (verified, error) {
	if !l.mine(token) {
		return verified{}, ErrNotMine
	}
	if !plainHeader(token) {
		return verified{}, errRefused
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return verified{}, errRefused
	}
	head := parsed.Headers[0]
	if len(head.KeyID) > maxTokenKid {
		return verified{}, errRefused
	}
	keys, generation, err := l.cfg.Keys.Key(ctx, head.KeyID)
	if err != nil {
		return verified{}, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "the keys of %s cannot be had at the moment", l.cfg.Name)
	}
	for i := range keys {
		if keys[i].Algorithm != "" && keys[i].Algorithm != head.Algorithm {
			continue
		}
		var std jwt.Claims
		var all map[string]any
		if parsed.Claims(keys[i].Key, &std, &all) != nil {
			continue
		}
		return l.accept(&std, all, now, generation)
	}
	return verified{}, errRefused
}

// mine looks at the issuer that a token claims, to choose the link. Nothing is believed yet.
func (l *TokenLink) mine(token string) bool {
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	var claims struct {
		Issuer string `json:"iss"`
		Job    string `json:"nomad_job_id"`
	}
	if json.Unmarshal(body, &claims) != nil {
		return false
	}
	return claims.Issuer == l.cfg.Issuer && (l.cfg.Kind != KindWorkload || claims.Job != "")
}

// plainHeader refuses headers that bring a key, name a place for one, or want something understood.
func plainHeader(token string) bool {
	first, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return false
	}
	var head map[string]json.RawMessage
	if json.Unmarshal(raw, &head) != nil {
		return false
	}
	for name := range head {
		switch name {
		case "alg", "kid", "typ", "cty", "x5t", "x5t#S256":
		default:
			return false
		}
	}
	return true
}

// accept checks what a token whose signature is good says.
func (l *TokenLink) accept(std *jwt.Claims, all map[string]any, now time.Time, generation uint64) (verified, error) {
	leeway := l.cfg.Leeway
	switch {
	case std.Issuer != l.cfg.Issuer, std.Expiry == nil, !now.Before(std.Expiry.Time().Add(leeway)),
		std.NotBefore != nil && now.Add(leeway).Before(std.NotBefore.Time()),
		std.IssuedAt != nil && now.Add(leeway).Before(std.IssuedAt.Time()):
		return verified{}, errRefused
	case len(std.Audience) == 0, slices.ContainsFunc(std.Audience, func(a string) bool { return !slices.Contains(l.cfg.Audiences, a) }):
		return verified{}, errRefused
	}
	for claim, want := range l.cfg.Require {
		if got, ok := all[claim].(string); !ok || !matches(want, got) {
			return verified{}, errRefused
		}
	}
	who, err := l.identity(all)
	if err != nil {
		return verified{}, err
	}
	v := verified{who: who, from: now.Add(-leeway), to: std.Expiry.Time().Add(leeway), generation: generation}
	if std.NotBefore != nil {
		v.from = std.NotBefore.Time().Add(-leeway)
	}
	return v, nil
}

// identity makes of claims who somebody is, and what he may do by them.
func (l *TokenLink) identity(all map[string]any) (Identity, error) {
	subject := l.subject(all)
	if subject == "" || len(subject) > state.MaxSubject {
		return Identity{}, errRefused
	}
	id := Identity{Kind: l.cfg.Kind, Link: l.cfg.Name, Subject: l.cfg.Name + "/" + subject, Name: word(all, l.cfg.NameClaim), Tenant: l.cfg.Tenant}
	if id.Name == "" {
		id.Name = subject
	}
	kind := state.SubjectService
	if l.cfg.Kind == KindOIDC || l.cfg.Kind == KindJWT {
		kind = state.SubjectUser
	}
	id.Subjects = []state.Subject{{Kind: kind, ID: id.Subject}}
	groups := list(all, l.cfg.GroupsClaim, maxGroups)
	for _, g := range groups {
		id.Groups = append(id.Groups, l.cfg.Name+"/"+g)
		id.Subjects = append(id.Subjects, state.Subject{Kind: state.SubjectGroup, ID: l.cfg.Name + "/" + g})
	}
	claimed := word(all, l.cfg.TenantClaim)
	applyGrants(&id, l.cfg.Grants, func(g *Grant) bool { return g.matches(groups, all) })
	if claimed != "" {
		if state.CheckTenantID(claimed) != nil || id.Scope != "" && id.Scope != state.Everywhere && id.Scope != claimed {
			return Identity{}, errRefused
		}
		id.Tenant = claimed
	}
	id.Roles = append(id.Roles, list(all, l.cfg.RolesClaim, state.MaxParents)...)
	return id.finish()
}

// finish completes an identity whose tenant and roles are known.
func (id Identity) finish() (Identity, error) {
	if id.Tenant == "" {
		return Identity{}, errRefused // no tenant wants him
	}
	if id.Scope == "" {
		id.Scope = id.Tenant
	}
	id.Version = strings.Join(append(append([]string{id.User(), id.Scope}, id.Roles...), id.Groups...), "\x00")
	return id, nil
}

// applyGrants gives an identity the roles of the grants that match. Grants of everything come before those of a tenant; of
// several tenants the first counts.
func applyGrants(id *Identity, grants []Grant, match func(*Grant) bool) {
	for _, global := range []bool{true, false} {
		for i := range grants {
			g := &grants[i]
			if g.Global != global || !match(g) {
				continue
			}
			scope := g.Tenant
			if scope == "" {
				scope = id.Tenant
			}
			if id.Tenant == "" || id.Scope == "" {
				id.Tenant = scope
			}
			if global {
				scope = state.Everywhere
			}
			if id.Scope == "" {
				id.Scope = scope
			}
			if id.Scope == scope {
				id.Roles = append(id.Roles, g.Roles...)
			}
		}
	}
}

func (g *Grant) matches(groups []string, all map[string]any) bool {
	if len(g.Groups) > 0 && !slices.ContainsFunc(groups, func(have string) bool {
		return slices.ContainsFunc(g.Groups, func(want string) bool { return matches(want, have) })
	}) {
		return false
	}
	for claim, want := range g.Claims {
		if got, ok := all[claim].(string); !ok || !matches(want, got) {
			return false
		}
	}
	return true
}

// subject is who a token is about, within its issuer. Of a job of Nomad it is the namespace and the job: allocations come and
// go, and a namespace has no slash in it.
func (l *TokenLink) subject(all map[string]any) string {
	if l.cfg.Kind == KindWorkload {
		ns, job := word(all, "nomad_namespace"), word(all, "nomad_job_id")
		if ns == "" || job == "" || strings.Contains(ns, "/") {
			return ""
		}
		return ns + "/" + job
	}
	return word(all, l.cfg.SubjectClaim)
}

func word(all map[string]any, claim string) string {
	s, _ := all[claim].(string)
	return s
}

// list returns a claim that is a list of words, or one word.
func list(all map[string]any, claim string, limit int) []string {
	if s := word(all, claim); s != "" {
		return []string{s}
	}
	raw, _ := all[claim].([]any)
	var out []string
	for _, v := range raw {
		if s, ok := v.(string); ok && s != "" && len(s) <= state.MaxSubject/2 && len(out) < limit {
			out = append(out, s)
		}
	}
	return out
}

// matches tells whether a pattern, in which "*" stands for any characters, covers a text.
func matches(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	rest, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, p)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}
