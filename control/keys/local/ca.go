// Package local issues certificates from a CA whose key is a file on this machine.
//
// It owns two files, the CA's certificate and its key. It is for one machine: who can read the key can make every
// certificate. Where there is a Vault, package vault keeps the key there instead.
package local

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// The names of the files in the CA's folder.
const (
	certFile = "ca.pem"
	keyFile  = "ca-key.pem"
	lockFile = "lock"
)

// lifetime of the CA's own certificate.
const lifetime = 10 * 365 * 24 * time.Hour

// CA is the CA of a folder.
type CA struct {
	cert *x509.Certificate
	pem  []byte
	key  *ecdsa.PrivateKey
}

var _ keys.Issuer = (*CA)(nil)

// Open opens the CA of dir, or makes one where there is none yet. Of two processes that do so at once, both get the same.
func Open(dir string) (ca *CA, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("certificate authority in %s: %w", dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	certPath, keyPath := filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
	cert, err := os.ReadFile(certPath)
	if errors.Is(err, os.ErrNotExist) {
		// The certificate is written last: without it, a key is what an interrupted Open left.
		return create(certPath, keyPath)
	}
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(keyPath); err != nil {
		return nil, err
	} else if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others than its owner (mode %v)", keyFile, fi.Mode().Perm())
	}
	key, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, err
	}
	return parse(cert, key)
}

func create(certPath, keyPath string) (*CA, error) {
	key, keyPEM, err := keys.NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "SoulBox local CA"},
		NotBefore: now.Add(-keys.Backdate), NotAfter: now.Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certPEM := keys.PEM("CERTIFICATE", der)
	if err := keys.WriteFile(keyPath, keyPEM); err != nil {
		return nil, err
	}
	if err := keys.WriteFile(certPath, certPEM); err != nil {
		return nil, err
	}
	return parse(certPEM, keyPEM)
}

func parse(certPEM, keyPEM []byte) (*CA, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s is no certificate in PEM", certFile)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	block, _ = pem.Decode(keyPEM)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is no key in PEM", keyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	if !cert.IsCA || time.Now().After(cert.NotAfter) {
		return nil, fmt.Errorf("%s is no CA, or has expired on %s", certFile, cert.NotAfter.Format(time.DateOnly))
	}
	return &CA{cert: cert, pem: certPEM, key: key}, nil
}

// Issue implements keys.Issuer.
func (c *CA) Issue(_ context.Context, req keys.Request) (*keys.Certificate, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	key, keyPEM, err := keys.NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	names := req.Template()
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: names.Subject, DNSNames: names.DNSNames, IPAddresses: names.IPAddresses, URIs: names.URIs,
		NotBefore: now.Add(-keys.Backdate), NotAfter: now.Add(req.TTL),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if req.Identity.Role == keys.RoleServer {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", req.Identity, err)
	}
	return keys.Assemble(req.Identity, keys.PEM("CERTIFICATE", der), keyPEM, c.pem)
}
