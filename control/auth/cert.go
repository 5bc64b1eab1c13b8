package auth

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// CertConfig describes the client certificates that are accepted.
type CertConfig struct {
	Name    string
	CAFile  string // in PEM form; read again when it changes
	CRLFile string // revocation lists of these CAs; empty: none. One that is over date refuses everybody
	Tenant  string
	Grants  []Grant // Claims has the pattern of "uri"; a certificate that no grant matches is none of ours
}

// CertLink accepts client certificates. TLS has checked that the client holds the key; everything else is checked here, with
// the authorities and the revocations of the moment.
type CertLink struct {
	cfg CertConfig
	now func() time.Time

	mu      sync.Mutex
	ca, crl fileState
	trust   *trust
}

type trust struct {
	roots   *x509.CertPool
	revoked map[string]bool // issuer and serial number
	until   time.Time       // of the lists; zero: there are none
}

type fileState struct {
	size int64
	mod  time.Time
}

var _ Link = (*CertLink)(nil)

// NewCertLink returns a link; its files must be good now.
func NewCertLink(cfg CertConfig, now func() time.Time) (*CertLink, error) {
	if now == nil {
		now = time.Now
	}
	l := &CertLink{cfg: cfg, now: now}
	_, err := l.current()
	return l, err
}

// Name implements Link.
func (l *CertLink) Name() string { return l.cfg.Name }

// Authenticate implements Link. It comes last in a chain: whoever shows a key or a token wants to be that one.
func (l *CertLink) Authenticate(_ context.Context, c *Credentials) (Identity, error) {
	if len(c.Certificate) == 0 || c.secret() != "" {
		return Identity{}, ErrNotMine
	}
	leaf := c.Certificate[0]
	if len(leaf.URIs) != 1 || leaf.IsCA {
		return Identity{}, ErrNotMine
	}
	t, err := l.current()
	if err != nil {
		return Identity{}, errRefused // files that are half written, or gone: nobody is trusted for what was
	}
	now := l.now()
	between := x509.NewCertPool()
	for _, more := range c.Certificate[1:] {
		between.AddCert(more)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: t.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil || !t.until.IsZero() && now.After(t.until) {
		return Identity{}, errRefused
	}
	for _, chain := range chains {
		for _, cert := range chain {
			if t.revoked[revocation(cert.RawIssuer, cert.SerialNumber.Bytes())] {
				return Identity{}, errRefused
			}
		}
	}
	uri := leaf.URIs[0].String()
	if len(uri) > state.MaxSubject/2 {
		return Identity{}, errRefused
	}
	id := Identity{Kind: KindCert, Link: l.cfg.Name, Subject: l.cfg.Name + "/" + uri, Name: uri, Tenant: l.cfg.Tenant}
	id.Subjects = []state.Subject{{Kind: state.SubjectService, ID: id.Subject}}
	applyGrants(&id, l.cfg.Grants, func(g *Grant) bool { return g.matches(nil, map[string]any{"uri": uri}) })
	if id.Scope == "" {
		return Identity{}, errRefused
	}
	return id.finish()
}

func revocation(issuer, serial []byte) string { return string(issuer) + "\x00" + string(serial) }

// current returns what is trusted by the files of this moment.
func (l *CertLink) current() (*trust, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ca, err := stat(l.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	var crl fileState
	if l.cfg.CRLFile != "" {
		if crl, err = stat(l.cfg.CRLFile); err != nil {
			return nil, fmt.Errorf("crl_file: %w", err)
		}
	}
	if l.trust != nil && ca == l.ca && crl == l.crl {
		return l.trust, nil
	}
	t, err := readTrust(l.cfg.CAFile, l.cfg.CRLFile)
	if err != nil {
		return nil, err
	}
	l.trust, l.ca, l.crl = t, ca, crl
	return t, nil
}

func stat(path string) (fileState, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}, err
	}
	return fileState{info.Size(), info.ModTime()}, nil
}

func readTrust(caFile, crlFile string) (*trust, error) {
	t := &trust{roots: x509.NewCertPool(), revoked: map[string]bool{}}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	var cas []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		cas = append(cas, cert)
		t.roots.AddCert(cert)
	}
	if len(cas) == 0 {
		return nil, errors.New("ca_file: holds no certificate in PEM form")
	}
	if crlFile == "" {
		return t, nil
	}
	if data, err = os.ReadFile(crlFile); err != nil {
		return nil, fmt.Errorf("crl_file: %w", err)
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		data = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: data})
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("crl_file: %w", err)
		}
		signed := false
		for _, ca := range cas {
			signed = signed || list.CheckSignatureFrom(ca) == nil
		}
		if !signed {
			return nil, errors.New("crl_file: a list is signed by none of the authorities")
		}
		if t.until.IsZero() || list.NextUpdate.Before(t.until) {
			t.until = list.NextUpdate
		}
		for _, e := range list.RevokedCertificateEntries {
			t.revoked[revocation(list.RawIssuer, e.SerialNumber.Bytes())] = true
		}
	}
	if t.until.IsZero() {
		return nil, errors.New("crl_file: holds no list, or one without a time of its next update")
	}
	return t, nil
}
