package service

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"context"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
)

func TestAuth_checkNamesTheField(t *testing.T) {
	for want, text := range map[string]string{
		"auth.jwt.ci: needs one of":                `jwt "ci" {}`,
		"auth.jwt.key: the name is taken":          `jwt "key" { issuer = "https://a" }`,
		"auth.jwt.a/b:":                            `jwt "a/b" { issuer = "https://a" }`,
		"auth.jwt.ci.leeway:":                      "jwt \"ci\" {\n issuer = \"https://a\"\n leeway = \"soon\"\n}",
		"auth.jwt.ci.issuer:":                      `jwt "ci" { issuer = "a" }`,
		"auth.jwt.ci.keys_file:":                   "jwt \"ci\" {\n jwks_url = \"https://a\"\n keys_file = \"/k\"\n}",
		"auth.oidc.corp.client_id:":                `oidc "corp" { issuer = "https://a" }`,
		"auth.jwt.ci.grant[0].roles:":              "jwt \"ci\" {\n issuer = \"https://a\"\n grant { roles = [] }\n}",
		"auth.jwt.ci.grant[0].tenant:":             "jwt \"ci\" {\n issuer = \"https://a\"\n grant {\n roles = [\"viewer\"]\n tenant = \"A\"\n }\n}",
		"auth.certificate.mtls: needs a block tls": "certificate \"mtls\" {\n ca_file = \"/a\"\n grant { roles = [\"viewer\"] }\n}",
		"auth.certificate.mtls.grant:":             `certificate "mtls" { ca_file = "/a" }`,
	} {
		must.ErrorContains(t, parse(t, "auth {\n"+text+"\n}").Check(), want)
	}
}

// clientCert makes a certificate of a CA for a URI.
func clientCert(t *testing.T, ca *x509.Certificate, caKey crypto.Signer, serial int64, uri string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	u, err := url.Parse(uri)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{u}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, ca, key.Public(), caKey)
	must.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func authority(t *testing.T) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}}, key.Public(), key)
	must.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	return cert, key
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	must.NoError(t, os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	must.NoError(t, os.Rename(path+".new", path))
}

// TestService_authenticatesTokensAndCertificates asks a whole server over TLS, with the links that its file describes.
func TestService_authenticatesTokensAndCertificates(t *testing.T) {
	_, dir := certificates(t)
	work := t.TempDir()
	public, signKey, err := ed25519.GenerateKey(rand.Reader)
	must.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must.NoError(t, err)
	writePEM(t, filepath.Join(work, "jwt.pem"), "PUBLIC KEY", der)
	ca, caKey := authority(t)
	writePEM(t, filepath.Join(work, "ca.pem"), "CERTIFICATE", ca.Raw)
	revoke := func(serials ...int64) {
		list := &x509.RevocationList{Number: big.NewInt(int64(len(serials) + 1)), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
		for _, n := range serials {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
		}
		der, err := x509.CreateRevocationList(rand.Reader, list, ca, caKey)
		must.NoError(t, err)
		writePEM(t, filepath.Join(work, "crl.pem"), "X509 CRL", der)
	}
	revoke()
	f := parse(t, `
listen   = "127.0.0.1:0"
data_dir = "`+t.TempDir()+`"
node "x" { socket = "/nonexistent/node.sock" }
tls {
  cert_file = "`+dir+`/cert.pem"
  key_file  = "`+dir+`/key.pem"
}
auth {
  jwt "ci" {
    issuer    = "https://ci.example"
    audiences = ["soulbox"]
    keys_file = "`+work+`/jwt.pem"
    tenant    = "default"
    grant {
      claims = { repository = "acme/*" }
      roles  = ["developer"]
    }
  }
  certificate "mtls" {
    ca_file  = "`+work+`/ca.pem"
    crl_file = "`+work+`/crl.pem"
    tenant   = "default"
    grant {
      claims = { uri = "spiffe://acme/*" }
      roles  = ["viewer"]
    }
  }
}`)
	must.NoError(t, f.Check())
	ctx, cancel := context.WithCancel(t.Context())
	cfg, err := f.Config(ctx, noEnv, hclog.NewNullLogger())
	must.NoError(t, err)
	s, err := Open(ctx, cfg)
	must.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		must.NoError(t, <-done)
	}()
	rootPEM, err := os.ReadFile(filepath.Join(dir, keys.CAFile))
	must.NoError(t, err)
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM(rootPEM))
	ask := func(cert *tls.Certificate, token string) (int, string) {
		t.Helper()
		conf := &tls.Config{RootCAs: roots, ServerName: keys.RoleServer.DNSName()}
		if cert != nil {
			conf.Certificates = []tls.Certificate{*cert}
		}
		hc := httpClient(conf)
		defer hc.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Address()+"/v1/auth/whoami", nil)
		must.NoError(t, err)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := hc.Do(req)
		must.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp.StatusCode, string(b)
	}
	token := func(repository string) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: signKey}, nil)
		must.NoError(t, err)
		out, err := jwt.Signed(signer).Claims(map[string]any{
			"iss": "https://ci.example", "aud": "soulbox", "sub": "run-1", "repository": repository, "exp": time.Now().Add(time.Minute).Unix(),
		}).Serialize()
		must.NoError(t, err)
		return out
	}
	status, body := ask(nil, token("acme/web"))
	must.Eq(t, 200, status, must.Sprint(body))
	must.StrContains(t, body, `"user":"jwt:ci/run-1"`)
	must.StrContains(t, body, `"roles":["developer"]`)
	_, body = ask(nil, token("else/web"))
	must.StrContains(t, body, `"roles":[]`)
	status, body = ask(nil, "sb_0000000000000000_"+"00")
	must.Eq(t, 401, status)
	must.StrContains(t, body, "tried: key")

	good := clientCert(t, ca, caKey, 7, "spiffe://acme/ci")
	status, body = ask(&good, "")
	must.Eq(t, 200, status, must.Sprint(body))
	must.StrContains(t, body, `"user":"cert:mtls/spiffe://acme/ci"`)
	unknown := clientCert(t, ca, caKey, 8, "spiffe://else/ci")
	status, _ = ask(&unknown, "")
	must.Eq(t, 401, status)
	otherCA, otherKey := authority(t)
	forged := clientCert(t, otherCA, otherKey, 7, "spiffe://acme/ci")
	status, _ = ask(&forged, "")
	must.Eq(t, 401, status)
	revoke(7)
	status, _ = ask(&good, "")
	must.Eq(t, 401, status, must.Sprint("a revoked certificate ends without a restart"))
	revoke()
	status, _ = ask(&good, "")
	must.Eq(t, 200, status)
	must.NoError(t, os.WriteFile(filepath.Join(work, "ca.pem"), []byte("half"), 0o600))
	status, _ = ask(&good, "")
	must.Eq(t, 401, status, must.Sprint("files that are half written trust nobody"))
}
