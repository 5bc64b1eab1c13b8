package state

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
)

const raftName = "server.soulbox"

// authority is a CA for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
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
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert: cert, key: key, pool: pool}
}

func (a *authority) issue(t *testing.T, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	must.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) tls(cert tls.Certificate) *TLS {
	return &TLS{
		Server: func() (*tls.Config, error) {
			return &tls.Config{
				MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool,
				VerifyConnection: func(s tls.ConnectionState) error { return s.PeerCertificates[0].VerifyHostname(raftName) },
			}, nil
		},
		Client: func() (*tls.Config, error) {
			return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: a.pool, ServerName: raftName}, nil
		},
	}
}

func TestThreeServers_overMutualTLS(t *testing.T) {
	ca := newAuthority(t)
	var peers []Peer
	for _, id := range []string{"a", "b", "c"} { // known before the servers start
		peers = append(peers, Peer{ID: id, Addr: agenttest.Address(t)})
	}
	var servers []*Server
	for _, p := range peers {
		s, err := Open(Config{Dir: t.TempDir(), ServerID: p.ID, Bind: p.Addr, Peers: peers, TLS: ca.tls(ca.issue(t, raftName)), fast: true})
		must.NoError(t, err)
		servers = append(servers, s)
	}
	defer func() {
		for _, s := range servers {
			must.NoError(t, s.Close())
		}
	}()
	(&three{servers: servers}).write(t, &SandboxCreate{Sandbox: starting(1)}, servers)
	until(t, "all have it", func() bool {
		for _, s := range servers {
			if _, err := s.Sandbox(id(1)); err != nil {
				return false
			}
		}
		return true
	})

	for name, cert := range map[string]tls.Certificate{
		"a client's certificate of the same CA": ca.issue(t, "client.soulbox"),
		"a stranger's certificate":              newAuthority(t).issue(t, raftName),
	} {
		layer := &streamLayer{tls: ca.tls(cert)}
		c, err := layer.Dial(raft.ServerAddress(peers[0].Addr), 5*time.Second)
		if err == nil { // in TLS 1.3 the refusal comes with the first read
			must.NoError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		must.Error(t, err, must.Sprint(name))
		must.False(t, errors.Is(err, os.ErrDeadlineExceeded), must.Sprint(name, "is refused, not ignored"))
	}
}

// TestListener_tellsRequestsFromRaft has three servers that speak Raft, and a request on the same address.
func TestListener_tellsRequestsFromRaft(t *testing.T) {
	ca := newAuthority(t)
	var peers []Peer
	for _, id := range []string{"a", "b"} {
		peers = append(peers, Peer{ID: id, Addr: agenttest.Address(t)})
	}
	var servers []*Server
	for _, p := range peers {
		s, err := Open(Config{Dir: t.TempDir(), ServerID: p.ID, Bind: p.Addr, Peers: peers, TLS: ca.tls(ca.issue(t, raftName)), fast: true})
		must.NoError(t, err)
		defer func() { must.NoError(t, s.Close()) }()
		servers = append(servers, s)
	}
	var lead Leadership
	until(t, "both know who leads", func() bool {
		a, _ := servers[0].Leadership()
		b, _ := servers[1].Leadership()
		lead = a
		return a.ID != "" && a.ID == b.ID && a.Here != b.Here
	})
	leader, other := servers[0], servers[1]
	if !lead.Here {
		leader, other = other, leader
	}
	must.NoError(t, leader.Verify(t.Context()))
	must.ErrorIs(t, other.Verify(t.Context()), ErrNoLeader)
	age, ok := other.Age()
	must.True(t, ok)
	must.Less(t, time.Minute, age)

	l := leader.Requests()
	c, err := other.Dial(t.Context(), lead.Addr)
	must.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("GET / HTTP/1.1\r\n"))
	must.NoError(t, err)
	got, err := l.Accept()
	must.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(got, b)
	must.NoError(t, err)
	must.Eq(t, "GET /", string(b))
	must.NoError(t, l.Close())
	_, err = l.Accept()
	must.ErrorIs(t, err, net.ErrClosed)
	mustApply(t, leader, &SandboxCreate{Sandbox: starting(1)}) // Raft goes on

	must.NoError(t, leader.HandOver())
	until(t, "the other leads", func() bool { l, _ := other.Leadership(); return l.Here })
	must.NoError(t, other.Verify(t.Context()))
}
