// Package vault has its keys in Vault: certificates through the PKI engine, and the other implementations of the seam.
//
// It owns no key of a CA: Vault keeps it. A certificate's own key is made here and never leaves the process; Vault sees a
// signing request. Prepare sets the engine up for those who have no operator that does it. Rings and signers
// take their keys from the transit engine or from SoulBox's own. No call of Vault is on the way of a request: rings answer from a copy
// that is refreshed in the background and is good for a time. This is the only package of the control service that speaks to Vault.
package vault

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// DefaultMount is where the PKI engine is mounted.
const DefaultMount = "soulbox-pki"

// Issuer is a keys.Issuer.
type Issuer struct{ *Client }

var _ keys.Issuer = (*Issuer)(nil)

// New returns an issuer with a client of its own. It does not speak to Vault yet.
func New(cfg Config) (*Issuer, error) {
	c, err := Connect(cfg)
	if err != nil {
		return nil, err
	}
	return c.Issuer(), nil
}

// Issuer returns an issuer of certificates.
func (c *Client) Issuer() *Issuer { return &Issuer{c} }

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
	var secret *vaultapi.Secret
	err = i.call(ctx, issueTimeout, func(ctx context.Context, v *vaultapi.Client) error {
		secret, err = v.Logical().WriteWithContext(ctx, i.cfg.Mount+"/sign/"+roleName(req.Identity.Role), map[string]any{
			"csr":         string(keys.PEM("CERTIFICATE REQUEST", csr)),
			"common_name": names.Subject.CommonName,
			"alt_names":   strings.Join(names.DNSNames, ","),
			"uri_sans":    req.Identity.String(),
			"ip_sans":     joinIPs(req.IPs),
			"ttl":         req.TTL.String(),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", req.Identity, err)
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
