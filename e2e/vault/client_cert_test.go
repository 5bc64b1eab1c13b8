package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
)

// Callers whose certificates Vault issues: the SAN URI says who somebody is, and Vault's revocation list who is nobody any more.
func TestCertificates_ofVaultAreIdentitiesUntilTheyAreRevoked(t *testing.T) {
	s := startVault(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path+".new", []byte(text), 0o600))
		must.NoError(t, os.Rename(path+".new", path))
		return path
	}
	word := func(data map[string]any, name string) string {
		v, ok := data[name].(string)
		must.True(t, ok, must.Sprint(name))
		return v
	}
	s.ok("secrets", "enable", "-path=callers", "pki")
	root, _ := s.data("write", "callers/root/generate/internal", "common_name=callers", "ttl=24h")
	s.ok("write", "callers/config/crl", "expiry=72h")
	s.ok("write", "callers/roles/ci", "allow_any_name=true", "enforce_hostnames=false", "allowed_uri_sans=spiffe://acme/*", "server_flag=false",
		"client_flag=true", "key_type=ec", "key_bits=256", "max_ttl=1h", "require_cn=false")
	s.ok("write", "callers/roles/web", "allow_localhost=true", "allow_ip_sans=true", "client_flag=false", "key_type=ec", "key_bits=256", "max_ttl=1h")
	ca := word(root, "certificate")
	crl := func() string { return word(first(s.data("read", "callers/cert/crl")), "certificate") }
	issue := func(role string, args ...string) (tls.Certificate, string, map[string]any) {
		t.Helper()
		data, _ := s.data(append([]string{"write", "callers/issue/" + role}, args...)...)
		pair, err := tls.X509KeyPair([]byte(word(data, "certificate")), []byte(word(data, "private_key")))
		must.NoError(t, err)
		return pair, word(data, "serial_number"), data
	}
	_, _, web := issue("web", "common_name=localhost", "ip_sans=127.0.0.1")

	node := fleettest.New(t)
	f, err := service.Parse(fmt.Appendf(nil, `
listen   = "127.0.0.1:0"
data_dir = %q
node "local" { socket = %q }
tls {
  cert_file = %q
  key_file  = %q
}
auth {
  certificate "vault" {
    ca_file  = %q
    crl_file = %q
    tenant   = "default"
    grant {
      claims = { uri = "spiffe://acme/ci/*" }
      roles  = ["viewer"]
    }
  }
}`, t.TempDir(), node.Socket, write("web.pem", word(web, "certificate")), write("web-key.pem", word(web, "private_key")),
		write("ca.pem", ca), write("crl.pem", crl())), "server.hcl")
	must.NoError(t, err)
	f = f.WithDefaults()
	must.NoError(t, f.Check())
	ctx, cancel := context.WithCancel(t.Context())
	cfg, err := f.Config(ctx, func(string) string { return "" }, hclog.NewNullLogger())
	must.NoError(t, err)
	server, err := service.Open(ctx, cfg)
	must.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() {
		cancel()
		must.NoError(t, <-done)
	}()
	roots := x509.NewCertPool()
	must.True(t, roots.AppendCertsFromPEM([]byte(ca)))
	whoami := func(cert tls.Certificate) (int, api.Whoami) {
		t.Helper()
		hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
		}}}
		resp, err := hc.Get(server.Address() + "/v1/auth/whoami")
		must.NoError(t, err)
		defer resp.Body.Close()
		var who api.Whoami
		must.NoError(t, json.NewDecoder(resp.Body).Decode(&who))
		return resp.StatusCode, who
	}

	runner, serial, _ := issue("ci", "uri_sans=spiffe://acme/ci/runner-1")
	status, who := whoami(runner)
	must.Eq(t, http.StatusOK, status)
	must.Eq(t, "cert:vault/spiffe://acme/ci/runner-1", who.User)
	must.Eq(t, []string{"viewer"}, who.Roles)
	second, _, _ := issue("ci", "uri_sans=spiffe://acme/ci/runner-2")
	status, _ = whoami(second)
	must.Eq(t, http.StatusOK, status)
	for name, args := range map[string][]string{
		"no grant covers it": {"uri_sans=spiffe://acme/web"},
		"no URI":             {"common_name=spiffe://acme/ci/runner-1"},
		"two URIs":           {"uri_sans=spiffe://acme/ci/a,spiffe://acme/ci/b"},
	} {
		other, _, _ := issue("ci", args...)
		status, _ = whoami(other)
		must.Eq(t, http.StatusUnauthorized, status, must.Sprint(name))
	}

	s.ok("write", "callers/revoke", "serial_number="+serial)
	write("crl.pem", crl())
	agenttest.Eventually(t, 10*time.Second, func() error {
		if status, _ := whoami(runner); status != http.StatusUnauthorized {
			return fmt.Errorf("revoked, and answered %d", status)
		}
		return nil
	})
	status, _ = whoami(second)
	must.Eq(t, http.StatusOK, status, must.Sprint("the others stay"))
}

func first[A, B any](a A, _ B) A { return a }
