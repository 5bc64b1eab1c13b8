// Package vault issues certificates through Vault's PKI engine.
//
// It owns no key of a CA: Vault keeps it. A certificate's own key is made here and never leaves the process; Vault sees a
// signing request. Prepare sets the engine up for those who have no operator that does it. This is the only package of the
// control service that speaks to Vault's PKI.
package vault

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// DefaultMount is where the PKI engine is mounted.
const DefaultMount = "soulbox-pki"

// callTimeout bounds a call of Vault, its retries included.
const callTimeout = 10 * time.Second

// Config says where Vault is. Zero values mean the defaults.
type Config struct {
	Address   string // default: VAULT_ADDR
	Namespace string // of Vault Enterprise
	Mount     string // of the PKI engine; default "soulbox-pki"
	// Token may use "<mount>/sign/soulbox-node" and ".../soulbox-server". TokenFile, where set, is read again for each
	// call, so that Nomad or Vault's agent can renew the token in it. Default: VAULT_TOKEN.
	Token     string
	TokenFile string
	CACert    string // file with the CA of Vault's own API
}

// Issuer is a keys.Issuer.
type Issuer struct {
	cfg    Config
	client *vaultapi.Client
}

var _ keys.Issuer = (*Issuer)(nil)

// New returns an issuer. It does not speak to Vault yet.
func New(cfg Config) (*Issuer, error) {
	if cfg.Mount == "" {
		cfg.Mount = DefaultMount
	}
	cfg.Mount = strings.Trim(cfg.Mount, "/")
	conf := vaultapi.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("vault client: %w", conf.Error)
	}
	if cfg.Address != "" {
		conf.Address = cfg.Address
	}
	if cfg.CACert != "" {
		if err := conf.ConfigureTLS(&vaultapi.TLSConfig{CACert: cfg.CACert}); err != nil {
			return nil, fmt.Errorf("vault client: %w", err)
		}
	}
	conf.Timeout, conf.MaxRetries = callTimeout, 1
	client, err := vaultapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	if cfg.Token != "" {
		client.SetToken(cfg.Token)
	}
	if cfg.Namespace != "" {
		client.SetNamespace(cfg.Namespace)
	}
	return &Issuer{cfg: cfg, client: client}, nil
}

// Close lets go of idle connections.
func (i *Issuer) Close() { i.client.CloneConfig().HttpClient.CloseIdleConnections() }

// session returns the client with the token of this moment.
func (i *Issuer) session() (*vaultapi.Client, error) {
	if i.cfg.TokenFile == "" {
		return i.client, nil
	}
	token, err := os.ReadFile(i.cfg.TokenFile)
	if err != nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault token: %v", err)
	}
	c, err := i.client.CloneWithHeaders()
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	c.SetToken(strings.TrimSpace(string(token)))
	return c, nil
}

// Issue implements keys.Issuer.
func (i *Issuer) Issue(ctx context.Context, req keys.Request) (*keys.Certificate, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	key, keyPEM, err := keys.NewKey()
	if err != nil {
		return nil, err
	}
	names := req.Template()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &names, key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: signing request: %w", req.Identity, err)
	}
	client, err := i.session()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secret, err := client.Logical().WriteWithContext(ctx, i.cfg.Mount+"/sign/"+roleName(req.Identity.Role), map[string]any{
		"csr":         string(keys.PEM("CERTIFICATE REQUEST", csr)),
		"common_name": names.Subject.CommonName,
		"alt_names":   strings.Join(names.DNSNames, ","),
		"uri_sans":    req.Identity.String(),
		"ip_sans":     joinIPs(req.IPs),
		"ttl":         req.TTL.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", req.Identity, mapError(err))
	}
	chain, ca, err := answer(secret)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: vault: %w", req.Identity, err)
	}
	cert, err := keys.Assemble(req.Identity, chain, keyPEM, ca)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	// A role with a lower maximum shortens a certificate without a word; who asked for a day would renew too late.
	if short := req.TTL - time.Until(cert.NotAfter); short > req.TTL/10+5*time.Second {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"certificate of %s: vault made it %s shorter than the %s asked for: see max_ttl of %s/roles/%s",
			req.Identity, short.Round(time.Second), req.TTL, i.cfg.Mount, roleName(req.Identity.Role))
	}
	return cert, nil
}

// answer returns the chain without its root, and the root.
func answer(secret *vaultapi.Secret) (chain, ca []byte, err error) {
	if secret == nil {
		return nil, nil, errors.New("an empty answer")
	}
	leaf, _ := secret.Data["certificate"].(string)
	issuing, _ := secret.Data["issuing_ca"].(string)
	if leaf == "" || issuing == "" {
		return nil, nil, errors.New("an answer without a certificate or its CA")
	}
	chain = append([]byte(leaf), '\n')
	parts, _ := secret.Data["ca_chain"].([]any)
	root := issuing
	for n, p := range parts {
		s, ok := p.(string)
		if !ok {
			return nil, nil, errors.New("an answer with a chain of no certificates")
		}
		if n == len(parts)-1 {
			root = s
			break
		}
		chain = append(append(chain, s...), '\n')
	}
	return chain, append([]byte(root), '\n'), nil
}

func roleName(r keys.Role) string { return "soulbox-" + string(r) }

func joinIPs(ips []net.IP) string {
	out := make([]string, len(ips))
	for n, ip := range ips {
		out[n] = ip.String()
	}
	return strings.Join(out, ",")
}

// mapError returns an error of Vault's as an *api.Error: whatever it is, it is not the client's.
func mapError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var resp *vaultapi.ResponseError
	if errors.As(err, &resp) {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"vault: %.300s (status %d)", strings.Join(resp.Errors, "; "), resp.StatusCode)
	}
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault cannot be reached: %v", err)
}
