package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
)

// NewKey makes an ECDSA P-256 key and returns it with its PEM form.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, PEM("PRIVATE KEY", der), nil
}

// Template returns the names of a certificate for r.
func (r *Request) Template() x509.CertificateRequest {
	return x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: r.Identity.Role.DNSName()},
		DNSNames:    []string{r.Identity.Role.DNSName()},
		IPAddresses: r.IPs,
		URIs:        []*url.URL{r.Identity.URI()},
	}
}
