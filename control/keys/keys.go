// Package keys is the seam through which the control service and its nodes get their certificates.
//
// It owns the contract, the names in certificates, and their renewal. Package local issues from a CA on this machine's disk,
// package vault through Vault's PKI engine; nothing else knows which one is behind the seam. It never stores a private key
// of its own accord: Keeper writes files only where it is told to.
package keys

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Lifetimes of certificates.
const (
	DefaultTTL = 24 * time.Hour
	MinTTL     = time.Minute
	MaxTTL     = 7 * 24 * time.Hour
	// Backdate is how long before its issue a certificate is valid, for machines whose clocks disagree.
	Backdate = time.Minute
)

// Role says what a certificate is for.
type Role string

// The roles. A node's certificate serves only and a control service's does both: a node cannot speak to another node.
const (
	RoleNode   Role = "node"
	RoleServer Role = "server"
)

// Identity is whom a certificate names: as the URI "soulbox://<role>/<name>", which peers check, and as DNS names for
// programs that know those only.
type Identity struct {
	Role Role
	Name string // a node's id, a server's name: 1 to 64 of a-z, A-Z, 0-9, ".", "_" and "-"
}

// Node names a node.
func Node(id api.NodeID) Identity { return Identity{RoleNode, string(id)} }

// Server names a server of the control service.
func Server(name string) Identity { return Identity{RoleServer, name} }

// URI returns the name that peers check.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "soulbox", Host: string(i.Role), Path: "/" + i.Name}
}

func (i Identity) String() string { return i.URI().String() }

// DNSName returns the DNS name that every certificate of the role carries: "node.soulbox" or "server.soulbox".
func (r Role) DNSName() string { return string(r) + ".soulbox" }

// Check returns an error where i cannot be in a certificate.
func (i Identity) Check() error {
	if i.Role != RoleNode && i.Role != RoleServer {
		return fmt.Errorf("role %q is neither %s nor %s", i.Role, RoleNode, RoleServer)
	}
	if i.Name == "" || len(i.Name) > 64 || i.Name == "." || i.Name == ".." {
		return fmt.Errorf("name %.80q of a %s has not 1 to 64 characters", i.Name, i.Role)
	}
	for _, c := range []byte(i.Name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("name %.80q of a %s has characters other than a-z, A-Z, 0-9, \".\", \"_\" and \"-\"", i.Name, i.Role)
		}
	}
	return nil
}

// Request asks for a certificate.
type Request struct {
	Identity Identity
	IPs      []net.IP      // addresses at which it serves, for clients that check those; optional
	TTL      time.Duration // MinTTL..MaxTTL; 0: DefaultTTL
}

// Check fills the default in and returns what is wrong as an *api.Error. Every Issuer calls it.
func (r *Request) Check() error {
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	err := r.Identity.Check()
	if err == nil && (r.TTL < MinTTL || r.TTL > MaxTTL) {
		err = fmt.Errorf("ttl %s is not between %s and %s", r.TTL, MinTTL, MaxTTL)
	}
	if err != nil {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "certificate: %v", err)
	}
	return nil
}

// Issuer makes certificates. Implementations are safe for concurrent use and keep these rules, which keystest checks:
//
//   - Each call makes a new ECDSA P-256 key, on this machine, and a certificate for it that the CA has signed, valid from
//     Backdate ago for the TTL, with the identity's URI and DNS name, for serving and, for a server, also as a client.
//   - A request that Check refuses is refused. An issuer that cannot be reached answers with an *api.Error of status 503.
type Issuer interface {
	Issue(ctx context.Context, req Request) (*Certificate, error)
}

// Certificate is a certificate, its key and the CA that peers' certificates must come from.
type Certificate struct {
	Identity Identity
	Chain    []byte // PEM: the certificate first, then intermediate CAs
	Key      []byte // PEM, PKCS #8
	CA       []byte // PEM: one or more roots

	NotBefore time.Time
	NotAfter  time.Time

	pair  tls.Certificate
	roots *x509.CertPool
}

// Assemble checks that chain, key and CA belong together and carry the identity, and returns them as a Certificate. Issuers
// call it.
func Assemble(id Identity, chain, key, ca []byte) (*Certificate, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if _, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok {
		return nil, fmt.Errorf("certificate of %s: its key is a %T", id, pair.PrivateKey)
	}
	c := &Certificate{
		Identity: id, Chain: chain, Key: key, CA: ca, NotBefore: pair.Leaf.NotBefore, NotAfter: pair.Leaf.NotAfter,
		pair: pair, roots: x509.NewCertPool(),
	}
	if !c.roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("certificate of %s: the CA holds no certificate", id)
	}
	if got, err := identityOf(pair.Leaf); err != nil || got != id {
		return nil, errors.Join(fmt.Errorf("certificate of %s names %q", id, got), err)
	}
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate of %s: chain: %w", id, err)
		}
		intermediates.AddCert(cert)
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: intermediates, DNSName: id.Role.DNSName(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return c, nil
}

// NameOf returns the name of the node or server that a certificate is of.
func NameOf(cert *x509.Certificate) (string, error) {
	id, err := identityOf(cert)
	return id.Name, err
}

// identityOf returns whom a certificate names. It has exactly one URI of ours.
func identityOf(cert *x509.Certificate) (Identity, error) {
	var out Identity
	for _, u := range cert.URIs {
		if u.Scheme != "soulbox" {
			continue
		}
		id := Identity{Role: Role(u.Host), Name: trimSlash(u.Path)}
		if out != (Identity{}) || id.URI().String() != u.String() {
			return Identity{}, fmt.Errorf("its names %v are not one of a node or of a server", cert.URIs)
		}
		out = id
	}
	if err := out.Check(); err != nil {
		return Identity{}, fmt.Errorf("certificate of %v: %w", cert.URIs, err)
	}
	return out, nil
}

func trimSlash(path string) string {
	if len(path) > 0 && path[0] == '/' {
		return path[1:]
	}
	return path
}

// PEM returns der as a PEM block.
func PEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
