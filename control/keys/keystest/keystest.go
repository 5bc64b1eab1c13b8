// Package keystest checks that what is behind the keys seam keeps its contracts: keys.Issuer, keys.Ring and audit.Signer.
package keystest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Run checks one implementation. Of each issuer that start returns, all certificates come from one CA, and another issuer
// of the same call of start does not exist.
func Run(t *testing.T, start func(t *testing.T) keys.Issuer) {
	issuer := start(t)
	issue := func(t *testing.T, id keys.Identity) *keys.Certificate {
		t.Helper()
		c, err := issuer.Issue(t.Context(), keys.Request{Identity: id, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, TTL: time.Hour})
		must.NoError(t, err)
		return c
	}

	t.Run("a certificate says what was asked for and no more", func(t *testing.T) {
		for _, tc := range []struct {
			id     keys.Identity
			usages []x509.ExtKeyUsage
			dns    string
		}{
			{keys.Node("n-1.example_A"), []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, "node.soulbox"},
			{keys.Server("s1"), []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, "server.soulbox"},
		} {
			c := issue(t, tc.id)
			leaf := parse(t, c.Chain)
			must.Len(t, 1, leaf.URIs)
			must.Eq(t, "soulbox://"+string(tc.id.Role)+"/"+tc.id.Name, leaf.URIs[0].String())
			must.Eq(t, []string{tc.dns}, leaf.DNSNames)
			must.Len(t, 1, leaf.IPAddresses)
			must.SliceContainsAll(t, tc.usages, leaf.ExtKeyUsage)
			must.False(t, leaf.IsCA)
			must.Eq(t, x509.KeyUsageDigitalSignature, leaf.KeyUsage)
			pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
			must.True(t, ok)
			must.True(t, pub.Curve == elliptic.P256())
			must.Between(t, 59*time.Minute, time.Until(leaf.NotAfter), time.Hour+time.Second)
			must.Between(t, keys.Backdate-5*time.Second, time.Since(leaf.NotBefore), keys.Backdate+10*time.Second)
			must.Eq(t, leaf.NotAfter, c.NotAfter)
		}
	})

	t.Run("no two certificates share a serial number or a key", func(t *testing.T) {
		var mu sync.Mutex
		serials, public := map[string]bool{}, map[string]bool{}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				leaf := parse(t, issue(t, keys.Node("n")).Chain)
				mu.Lock()
				defer mu.Unlock()
				serials[leaf.SerialNumber.String()] = true
				public[string(leaf.RawSubjectPublicKeyInfo)] = true
			})
		}
		wg.Wait()
		must.MapLen(t, 8, serials)
		must.MapLen(t, 8, public)
	})

	t.Run("a server speaks to a node, and nobody else does", func(t *testing.T) {
		node, server := issue(t, keys.Node("n1")), issue(t, keys.Server("s1"))
		other := start(t)
		foreign, err := other.Issue(t.Context(), keys.Request{Identity: keys.Server("s1")})
		must.NoError(t, err)
		url := serve(t, node.ServerTLS(keys.Identity{Role: keys.RoleServer}))
		for _, tc := range []struct {
			name string
			cfg  *tls.Config
			want string // of the error
		}{
			{"the server", server.ClientTLS(keys.Node("n1")), ""},
			{"the server, to any node", server.ClientTLS(keys.Identity{Role: keys.RoleNode}), ""},
			{"the server, to another node", server.ClientTLS(keys.Node("n2")), "the peer is soulbox://node/n1, not soulbox://node/n2"},
			{"the server, to a server", server.ClientTLS(keys.Server("n1")), "certificate is valid for node.soulbox, not server.soulbox"},
			{"another node", issue(t, keys.Node("n2")).ClientTLS(keys.Node("n1")), "bad certificate|remote error"},
			{"a server of another CA", foreign.ClientTLS(keys.Node("n1")), "unknown authority|remote error"},
			{"somebody without a certificate", anonymous(server, keys.Node("n1")), "certificate required"},
		} {
			err := get(t, url, tc.cfg)
			if tc.want == "" {
				must.NoError(t, err, must.Sprint(tc.name))
				continue
			}
			must.Error(t, err, must.Sprint(tc.name))
			found := false
			for w := range strings.SplitSeq(tc.want, "|") {
				found = found || strings.Contains(err.Error(), w)
			}
			must.True(t, found, must.Sprintf("%s: %v, want %s", tc.name, err, tc.want))
		}
	})

	t.Run("a server can refuse other servers", func(t *testing.T) {
		url := serve(t, issue(t, keys.Node("n1")).ServerTLS(keys.Server("s1")))
		must.NoError(t, get(t, url, issue(t, keys.Server("s1")).ClientTLS(keys.Node("n1"))))
		must.Error(t, get(t, url, issue(t, keys.Server("s2")).ClientTLS(keys.Node("n1"))))
	})

	t.Run("bad requests are refused", func(t *testing.T) {
		for name, req := range map[string]keys.Request{
			"no identity":       {},
			"another role":      {Identity: keys.Identity{Role: "root", Name: "x"}},
			"no name":           {Identity: keys.Node("")},
			"a path":            {Identity: keys.Node("a/../b")},
			"two names":         {Identity: keys.Node("a,soulbox://server/s")},
			"an escape":         {Identity: keys.Node("a%2f")},
			"a long name":       {Identity: keys.Node(api.NodeID(strings.Repeat("a", 65)))},
			"a short life":      {Identity: keys.Node("n"), TTL: time.Second},
			"a long life":       {Identity: keys.Node("n"), TTL: 365 * 24 * time.Hour},
			"a life before now": {Identity: keys.Node("n"), TTL: -time.Hour},
		} {
			_, err := issuer.Issue(t.Context(), req)
			must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprintf("%s: %v", name, err))
			must.Eq(t, api.CodeInvalid, api.AsError(err).ErrorCode, must.Sprint(name))
		}
	})

	t.Run("files can be read by others", func(t *testing.T) {
		dir := t.TempDir() + "/new"
		must.NoError(t, keys.WriteFiles(dir, issue(t, keys.Node("n"))))
		pair, err := tls.LoadX509KeyPair(dir+"/"+keys.CertFile, dir+"/"+keys.KeyFile)
		must.NoError(t, err)
		must.Eq(t, "soulbox://node/n", pair.Leaf.URIs[0].String())
	})
}

func parse(t *testing.T, chain []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(chain)
	must.NotNil(t, block)
	cert, err := x509.ParseCertificate(block.Bytes)
	must.NoError(t, err)
	return cert
}

func anonymous(c *keys.Certificate, peer keys.Identity) *tls.Config {
	cfg := c.ClientTLS(peer)
	cfg.Certificates = nil
	return cfg
}

// serve answers every request over cfg, and returns its URL.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	must.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	}), ReadHeaderTimeout: 10 * time.Second}
	srv.ErrorLog = log.New(io.Discard, "", 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return "https://" + l.Addr().String()
}

func get(t *testing.T, url string, cfg *tls.Config) error {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	must.NoError(t, err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return err
}
