package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// raw makes a request that the client would not make.
func (n *testNode) raw(t *testing.T, method, path, body string, header ...string) (int, api.Error) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.cfg.Socket)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, strings.NewReader(body))
	must.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, "1", resp.Header.Get(nodeapi.VersionHeader))
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	var e api.Error
	if resp.StatusCode >= 400 {
		must.NoError(t, json.Unmarshal(b, &e))
	}
	return resp.StatusCode, e
}

func TestServer_badRequests(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	id := string(api.NewSandboxID())
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		want                     string
	}{
		{"version", "GET", "/v1/node", "", []string{nodeapi.VersionHeader, "2"}, 400, "speaks version"},
		{"no such resource", "GET", "/v2/nothing", "", nil, 404, "/v2/nothing"},
		{"wrong method", "PATCH", "/v1/node", "", nil, 404, "PATCH"},
		{"bad id", "GET", "/v1/sandboxes/..%2f..%2fetc", "", nil, 400, "sandbox id"},
		{"unknown id", "GET", "/v1/sandboxes/" + id, "", nil, 404, id},
		{"no JSON", "POST", "/v1/sandboxes", "{", nil, 400, "JSON"},
		{"unknown field", "POST", "/v1/sandboxes", `{"cpus":3}`, nil, 400, "cpus"},
		{"two values", "POST", "/v1/sandboxes", `{} {}`, nil, 400, "goes on"},
		{"huge", "POST", "/v1/sandboxes", `{"template":"` + strings.Repeat("x", maxRequestBytes) + `"}`, nil, 413, "larger"},
		{"deep", "POST", "/v1/sandboxes", strings.Repeat("[", 100_000), nil, 400, "JSON"},
		{"no upgrade", "POST", "/v1/sandboxes/" + string(sb.ID) + "/exec", "", nil, 426, "Upgrade"},
		{"bad since", "GET", "/v1/events?since=-1", "", nil, 400, "since"},
		{"bad wait", "GET", "/v1/sandboxes/" + string(sb.ID) + "/wait?timeout=1y", "", nil, 400, "timeout"},
		{"bad signal", "POST", "/v1/sandboxes/" + string(sb.ID) + "/signal", `{"signal":0}`, nil, 400, "signal"},
		{"bad resize", "POST", "/v1/sandboxes/" + string(sb.ID) + "/resize", `{"pid":1,"size":{"cols":0,"rows":1}}`, nil, 400, "size"},
		{"bad stream", "GET", "/v1/sandboxes/" + string(sb.ID) + "/logs?stream=both", "", nil, 400, "stream"},
		{"no main", "GET", "/v1/sandboxes/" + string(sb.ID) + "/logs", "", nil, 404, "main"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, e := n.raw(t, tc.method, tc.path, tc.body, tc.header...)
			must.Eq(t, tc.status, status)
			must.Eq(t, status, e.Code)
			must.StrContains(t, e.Message, tc.want)
			must.NotEq(t, "", e.ErrorCode)
		})
	}
}

func TestServer_socketIsPrivateAndReplacedAtOnce(t *testing.T) {
	cfg := testConfig(shortDir(t))
	must.NoError(t, os.MkdirAll(cfg.RunDir, 0o700))
	must.NoError(t, os.WriteFile(cfg.RunDir+"/node.sock", nil, 0o666)) // left by a daemon that was killed
	n := startNode(t, cfg, nil)
	waitUntil(t, "answer", func() bool { _, err := n.client.Node(t.Context()); return err == nil })
	fi, err := os.Stat(n.cfg.Socket)
	must.NoError(t, err)
	must.Eq(t, 0o600, fi.Mode().Perm())
	n.stop()
	must.FileNotExists(t, n.cfg.Socket)
	must.FileNotExists(t, n.cfg.Socket+"~")
}

func TestServer_nodeAndMetrics(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	_, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	_, err = n.client.Create(t.Context(), nodeapi.CreateRequest{})
	must.Error(t, err)
	info, err := n.client.Node(t.Context())
	must.NoError(t, err)
	must.True(t, info.Healthy, must.Sprint(info.Reason))
	must.Eq(t, 1, info.Running)
	must.Eq(t, nodeapi.Version, info.APIVersion)
	must.SliceNotEmpty(t, info.Probes)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.cfg.Socket)
	}}}).Get("http://node/v1/metrics")
	must.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	for _, want := range []string{
		"soulbox_node_creates 1\n", "soulbox_node_running 1\n", "soulbox_node_create_seconds_count 1\n",
		`soulbox_node_create_failures{reason="invalid_argument"} 1`, "# TYPE soulbox_node_create_seconds histogram\n",
	} {
		must.StrContains(t, string(b), want)
	}
}

// ca makes certificates for a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	must.NoError(t, err)
	return ca{cert, key}
}

func (c ca) issue(t *testing.T, name string, usage x509.ExtKeyUsage) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, c.cert, key.Public(), c.key)
	must.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func (c ca) client(t *testing.T, name string, usage x509.ExtKeyUsage) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	cfg := &tls.Config{RootCAs: pool}
	if name != "" {
		cert, err := tls.X509KeyPair(c.issue(t, name, usage))
		must.NoError(t, err)
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg
}

func TestTLS_onlyKnownClients(t *testing.T) {
	dir := shortDir(t)
	good, evil := newCA(t), newCA(t)
	write := func(c ca) {
		cert, key := c.issue(t, "node", x509.ExtKeyUsageServerAuth)
		for name, b := range map[string][]byte{
			"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw}), "cert.pem": cert, "key.pem": key,
		} {
			must.NoError(t, writeFileSync(filepath.Join(dir, name), b, 0o600))
		}
	}
	write(good)
	cfg := testConfig(dir)
	cfg.Address = "127.0.0.1:0"
	cfg.TLS = TLS{CAFile: dir + "/ca.pem", CertFile: dir + "/cert.pem", KeyFile: dir + "/key.pem", ClientNames: []string{"control"}}
	n := startNode(t, cfg, nil)
	var addr string
	waitUntil(t, "address", func() bool {
		info, err := n.client.Node(t.Context())
		addr = info.Address
		return err == nil && !strings.HasSuffix(addr, ":0")
	})
	ask := func(c *tls.Config) error {
		cl := nodeapi.NewTLS(addr, c)
		defer cl.Close()
		_, err := cl.Node(t.Context())
		return err
	}
	must.NoError(t, ask(good.client(t, "control", x509.ExtKeyUsageClientAuth)))
	remote := nodeapi.NewTLS(addr, good.client(t, "control", x509.ExtKeyUsageClientAuth))
	defer remote.Close()
	req := createRequest()
	req.Main, req.Logs = &guest.Start{Argv: []string{"true"}}, &nodeapi.LogTargets{Stdout: dir + "/ca.pem"}
	_, err := remote.Create(t.Context(), req)
	must.Eq(t, http.StatusForbidden, api.StatusOf(err), must.Sprint("a client elsewhere must not name files of the host"))
	req = createRequest()
	req.Owner.Folder = dir
	_, err = remote.Create(t.Context(), req)
	must.Eq(t, http.StatusForbidden, api.StatusOf(err), must.Sprint("nor folders"))
	for name, c := range map[string]*tls.Config{
		"without a certificate":        good.client(t, "", 0),
		"with a server's certificate":  good.client(t, "control", x509.ExtKeyUsageServerAuth),
		"with another name":            good.client(t, "sandbox", x509.ExtKeyUsageClientAuth),
		"with a certificate of others": {RootCAs: good.client(t, "", 0).RootCAs, Certificates: evil.client(t, "control", x509.ExtKeyUsageClientAuth).Certificates},
	} {
		err := ask(c)
		must.ErrorIs(t, err, nodeapi.ErrUnreachable, must.Sprint(name))
	}

	// A new CA takes the place of the old one without a restart.
	write(evil)
	waitUntil(t, "new certificates", func() bool { return ask(evil.client(t, "control", x509.ExtKeyUsageClientAuth)) == nil })
	must.Error(t, ask(good.client(t, "control", x509.ExtKeyUsageClientAuth)))
}

func TestConfig_TCPNeedsTLS(t *testing.T) {
	cfg := testConfig(shortDir(t))
	cfg.Address = "127.0.0.1:0"
	_, err := New(cfg)
	must.ErrorContains(t, err, "mutual TLS")
}
