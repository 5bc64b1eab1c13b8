package service

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

// AuthBlock says by what, beside API keys, callers show who they are.
type AuthBlock struct {
	JWT         []TokenBlock `hcl:"jwt,block"`         // tokens of an issuer, or of configured keys
	OIDC        []TokenBlock `hcl:"oidc,block"`        // ID tokens of people who have logged in
	Vault       []TokenBlock `hcl:"vault,block"`       // tokens of the Vault plugin
	Workload    []TokenBlock `hcl:"workload,block"`    // workload identities of Nomad
	Certificate []CertBlock  `hcl:"certificate,block"` // client certificates; needs tls
}

// TokenBlock describes the tokens of one issuer. Its label names the link.
type TokenBlock struct {
	Name      string   `hcl:"name,label"`
	Issuer    string   `hcl:"issuer,optional"`    // claim iss; of workload it may be left out
	Audiences []string `hcl:"audiences,optional"` // of oidc: the client_id
	Leeway    string   `hcl:"leeway,optional"`

	JWKSURL  string `hcl:"jwks_url,optional"`  // where the keys are; else keys_file; else they are found from the issuer
	KeysFile string `hcl:"keys_file,optional"` // a JSON web key set, or public keys in PEM form
	CAFile   string `hcl:"ca_file,optional"`   // of the server that has the keys

	ClientID string   `hcl:"client_id,optional"` // of oidc: a public client, for authorization code with PKCE
	Scopes   []string `hcl:"scopes,optional"`    // of oidc, beside openid
	// CallbackPort is the port of 127.0.0.1 in the redirect URI that an oidc issuer knows, which is
	// http://127.0.0.1:<port>/oidc/callback; 0: the issuer takes any, as RFC 8252 wants.
	CallbackPort int `hcl:"callback_port,optional"`

	SubjectClaim string            `hcl:"subject_claim,optional"`
	NameClaim    string            `hcl:"name_claim,optional"`
	GroupsClaim  string            `hcl:"groups_claim,optional"`
	TenantClaim  string            `hcl:"tenant_claim,optional"`
	RolesClaim   string            `hcl:"roles_claim,optional"`
	Tenant       string            `hcl:"tenant,optional"`
	Require      map[string]string `hcl:"require,optional"`
	Grants       []GrantBlock      `hcl:"grant,block"`
}

// CertBlock describes client certificates.
type CertBlock struct {
	Name    string       `hcl:"name,label"`
	CAFile  string       `hcl:"ca_file"`
	CRLFile string       `hcl:"crl_file,optional"`
	Tenant  string       `hcl:"tenant,optional"`
	Grants  []GrantBlock `hcl:"grant,block"`
}

// GrantBlock gives roles to those who match.
type GrantBlock struct {
	Groups []string          `hcl:"groups,optional"`
	Claims map[string]string `hcl:"claims,optional"` // of a certificate: "uri"
	Tenant string            `hcl:"tenant,optional"`
	Roles  []string          `hcl:"roles"`
	Global bool              `hcl:"everywhere,optional"`
}

// tokens are all token blocks with their kinds, in the order in which they are asked.
func (b *AuthBlock) tokens() (kinds []auth.Kind, blocks []TokenBlock) {
	for _, of := range []struct {
		kind auth.Kind
		list []TokenBlock
	}{{auth.KindJWT, b.JWT}, {auth.KindOIDC, b.OIDC}, {auth.KindVault, b.Vault}, {auth.KindWorkload, b.Workload}} {
		for _, t := range of.list {
			kinds, blocks = append(kinds, of.kind), append(blocks, t)
		}
	}
	return kinds, blocks
}

// checkAuth checks the block auth.
func (f File) checkAuth(bad func(field, format string, args ...any)) {
	if f.Auth == nil {
		return
	}
	names := map[string]bool{auth.LinkKey: true}
	name := func(field, n string) {
		if n == "" || len(n) > 64 || strings.ContainsAny(n, "/ ") {
			bad(field, "%.80q is no name of a link: 1 to 64 bytes without \"/\" and spaces", n)
		}
		if names[n] {
			bad(field, "the name is taken")
		}
		names[n] = true
	}
	grants := func(field string, list []GrantBlock) {
		for i, g := range list {
			at := fmt.Sprintf("%s.grant[%d]", field, i)
			if g.Tenant != "" && state.CheckTenantID(g.Tenant) != nil {
				bad(at+".tenant", "%.80q is no tenant's id", g.Tenant)
			}
			if len(g.Roles) == 0 {
				bad(at+".roles", "is empty")
			}
			for _, r := range g.Roles {
				if err := state.CheckRoleName(r); err != nil {
					bad(at+".roles", "%v", err)
				}
			}
		}
	}
	kinds, blocks := f.Auth.tokens()
	for i, t := range blocks {
		field := fmt.Sprintf("auth.%s.%s", kinds[i], t.Name)
		name(field, t.Name)
		grants(field, t.Grants)
		if t.Tenant != "" && state.CheckTenantID(t.Tenant) != nil {
			bad(field+".tenant", "%.80q is no tenant's id", t.Tenant)
		}
		if t.Leeway != "" {
			if d, err := time.ParseDuration(t.Leeway); err != nil || d <= 0 {
				bad(field+".leeway", "%.40q is not a duration greater than zero, such as \"30s\"", t.Leeway)
			}
		}
		if t.JWKSURL != "" && t.KeysFile != "" {
			bad(field+".keys_file", "goes not together with jwks_url")
		}
		if t.JWKSURL == "" && t.KeysFile == "" && t.Issuer == "" {
			bad(field, "needs one of jwks_url, keys_file and issuer")
		}
		for at, v := range map[string]string{".jwks_url": t.JWKSURL, ".issuer": t.Issuer} {
			if at == ".issuer" && (t.JWKSURL != "" || t.KeysFile != "") {
				continue // then it is a word and no place
			}
			if u, err := url.Parse(v); v != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "") {
				bad(field+at, "%.200q is no URL", v)
			}
		}
		if kinds[i] == auth.KindOIDC && t.ClientID == "" {
			bad(field+".client_id", "is missing")
		}
		if kinds[i] == auth.KindOIDC && t.Issuer == "" {
			bad(field+".issuer", "is missing: it is where people log in")
		}
		if t.CallbackPort < 0 || t.CallbackPort > 65535 {
			bad(field+".callback_port", "%d is not between 0 (any) and 65535", t.CallbackPort)
		}
	}
	for _, c := range f.Auth.Certificate {
		field := "auth.certificate." + c.Name
		name(field, c.Name)
		grants(field, c.Grants)
		if f.TLS == nil {
			bad(field, "needs a block tls")
		}
		if len(c.Grants) == 0 {
			bad(field+".grant", "without one nobody is let in")
		}
	}
}

// links makes the links that the block describes.
func (b *AuthBlock) links() (links []auth.Link, login []api.AuthLink, err error) {
	if b == nil {
		return nil, nil, nil
	}
	kinds, blocks := b.tokens()
	for i, t := range blocks {
		cfg, err := t.config(kinds[i])
		if err == nil {
			var l *auth.TokenLink
			if l, err = auth.NewTokenLink(cfg, nil); err == nil {
				links = append(links, l)
			}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("auth.%s.%s: %w", kinds[i], t.Name, err)
		}
		if kinds[i] == auth.KindOIDC {
			login = append(login, api.AuthLink{Name: t.Name, Kind: string(kinds[i]), Issuer: t.Issuer, ClientID: t.ClientID, Scopes: t.Scopes, CallbackPort: t.CallbackPort})
		}
	}
	for _, c := range b.Certificate {
		l, err := auth.NewCertLink(auth.CertConfig{Name: c.Name, CAFile: c.CAFile, CRLFile: c.CRLFile, Tenant: c.Tenant, Grants: grantsOf(c.Grants)}, nil)
		if err != nil {
			return nil, nil, fmt.Errorf("auth.certificate.%s: %w", c.Name, err)
		}
		links = append(links, l)
	}
	return links, login, nil
}

func (t TokenBlock) config(kind auth.Kind) (auth.TokenConfig, error) {
	cfg := auth.TokenConfig{
		Name: t.Name, Kind: kind, Issuer: t.Issuer, Audiences: t.Audiences, SubjectClaim: t.SubjectClaim, NameClaim: t.NameClaim,
		GroupsClaim: t.GroupsClaim, TenantClaim: t.TenantClaim, RolesClaim: t.RolesClaim, Tenant: t.Tenant, Require: t.Require,
		Grants: grantsOf(t.Grants),
	}
	if kind == auth.KindOIDC && len(cfg.Audiences) == 0 {
		cfg.Audiences = []string{t.ClientID}
	}
	if kind == auth.KindVault { // what the plugin's tokens say
		set(&cfg.TenantClaim, "tenant")
		set(&cfg.RolesClaim, "roles")
	}
	if t.Leeway != "" {
		var err error
		if cfg.Leeway, err = time.ParseDuration(t.Leeway); err != nil {
			return cfg, fmt.Errorf("leeway: %w", err)
		}
	}
	if t.KeysFile != "" {
		data, err := os.ReadFile(t.KeysFile)
		if err != nil {
			return cfg, fmt.Errorf("keys_file: %w", err)
		}
		if cfg.Keys, err = auth.ParseKeys(data); err != nil {
			return cfg, fmt.Errorf("keys_file: %w", err)
		}
		return cfg, nil
	}
	client, err := keysClient(t.CAFile)
	if err != nil {
		return cfg, fmt.Errorf("ca_file: %w", err)
	}
	cfg.Keys = auth.NewRemoteKeys(t.JWKSURL, t.Issuer, client)
	return cfg, nil
}

// keysClient reaches the servers that have keys. It keeps no connections: keys are read once a minute.
func keysClient(caFile string) (*http.Client, error) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("holds no certificate in PEM form")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}, nil
}

func grantsOf(list []GrantBlock) []auth.Grant {
	var out []auth.Grant
	for _, g := range list {
		out = append(out, auth.Grant{Groups: g.Groups, Claims: g.Claims, Tenant: g.Tenant, Roles: g.Roles, Global: g.Global})
	}
	return out
}
