package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
	"github.com/soulbox-dev/soulbox/control/state"
)

// raftServer is a control server's state with a certificate that is renewed.
type raftServer struct {
	*state.Server
	keeper *keys.Keeper
	addr   string
}

func (s *raftServer) serial(t *testing.T) string {
	t.Helper()
	pair, err := tls.X509KeyPair(s.keeper.Certificate().Chain, s.keeper.Certificate().Key)
	must.NoError(t, err)
	return pair.Leaf.SerialNumber.String()
}

// startRaft runs three servers whose certificates live as briefly as they may.
func startRaft(t *testing.T, issuer keys.Issuer) []*raftServer {
	t.Helper()
	var peers []state.Peer
	for _, id := range []string{"a", "b", "c"} {
		peers = append(peers, state.Peer{ID: id, Addr: agenttest.Address(t)})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var servers []*raftServer
	t.Cleanup(func() {
		for _, s := range servers {
			must.NoError(t, s.Close())
		}
		cancel()
		wg.Wait()
	})
	role := keys.Identity{Role: keys.RoleServer}
	for _, p := range peers {
		k, err := keys.Keep(t.Context(), issuer, keys.Request{Identity: keys.Server(p.ID), TTL: keys.MinTTL}, "", nil)
		must.NoError(t, err)
		wg.Go(func() { k.Run(ctx) })
		s, err := state.Open(state.Config{Dir: t.TempDir(), ServerID: p.ID, Bind: p.Addr, Peers: peers, TLS: &state.TLS{
			Server: func() (*tls.Config, error) { return k.Certificate().ServerTLS(role), nil },
			Client: func() (*tls.Config, error) { return k.Certificate().ClientTLS(role), nil },
		}})
		must.NoError(t, err)
		servers = append(servers, &raftServer{s, k, p.Addr})
	}
	return servers
}

// leading returns the server that leads.
func leading(t *testing.T, servers []*raftServer) *raftServer {
	t.Helper()
	var found *raftServer
	agenttest.Eventually(t, 60*time.Second, func() error {
		for _, s := range servers {
			if s.Leads() {
				found = s
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return found
}

// refuses checks that a server does not let a connection with cfg speak.
func refuses(t *testing.T, name, addr string, cfg *tls.Config) {
	t.Helper()
	d := tls.Dialer{Config: cfg}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err == nil { // in TLS 1.3 the refusal comes with the first read
		must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	must.Error(t, err, must.Sprint(name))
	must.False(t, errors.Is(err, os.ErrDeadlineExceeded), must.Sprint(name, " is refused, not ignored: ", err))
}

func issuers(t *testing.T) map[string]func(t *testing.T) keys.Issuer {
	return map[string]func(t *testing.T) keys.Issuer{
		"of the private CA": func(t *testing.T) keys.Issuer {
			ca, err := local.Open(t.TempDir())
			must.NoError(t, err)
			return ca
		},
		"of Vault": func(t *testing.T) keys.Issuer {
			v := agenttest.Vault(t, agent.VaultConfig{})
			i, err := vault.New(vault.Config{Address: v.Config.Address(), Token: v.Config.RootToken})
			must.NoError(t, err)
			t.Cleanup(i.Close)
			must.NoError(t, i.Prepare(t.Context()))
			return i
		},
	}
}

func TestRaft_certificatesAreRenewedUnderLoad(t *testing.T) {
	for name, issuer := range issuers(t) {
		t.Run(name, func(t *testing.T) {
			servers := startRaft(t, issuer(t))
			leader := leading(t, servers)
			before := map[string]string{}
			for _, s := range servers {
				before[s.addr] = s.serial(t)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var done, failed atomic.Int64
			var wg sync.WaitGroup
			for n := range 4 {
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						key := state.Key{ID: fmt.Sprintf("%08x%08x", n, i), Tenant: state.DefaultTenant, Name: "load", Hash: make([]byte, 32), CreatedAt: time.Now()}
						if _, err := leader.Apply(ctx, &state.KeyPut{Key: key}); err == nil {
							done.Add(1)
						} else if ctx.Err() == nil {
							failed.Add(1)
						}
					}
				})
			}
			agenttest.Eventually(t, 90*time.Second, func() error {
				for _, s := range servers {
					if s.serial(t) == before[s.addr] {
						return fmt.Errorf("server %s has its first certificate", s.addr)
					}
				}
				return nil
			})
			// A connection that is made now shows the new certificate.
			c, err := tls.Dial("tcp", servers[0].addr, servers[1].keeper.Certificate().ClientTLS(keys.Server("a")))
			must.NoError(t, err)
			must.Eq(t, servers[0].serial(t), c.ConnectionState().PeerCertificates[0].SerialNumber.String())
			must.NoError(t, c.Close())
			from := done.Load()
			agenttest.Eventually(t, 20*time.Second, func() error {
				if done.Load() < from+10 {
					return errors.New("no change is made after the renewal")
				}
				return nil
			})
			cancel()
			wg.Wait()
			t.Logf("%d changes were made while all three certificates were renewed, %d failed", done.Load(), failed.Load())
			must.Eq(t, 0, failed.Load())
		})
	}
}

func TestRaft_nobodyButAServerSpeaksToAServer(t *testing.T) {
	ca, err := local.Open(t.TempDir())
	must.NoError(t, err)
	servers := startRaft(t, ca)
	leading(t, servers)
	node, err := ca.Issue(t.Context(), keys.Request{Identity: keys.Node("n1")})
	must.NoError(t, err)
	other, err := local.Open(t.TempDir())
	must.NoError(t, err)
	stranger, err := other.Issue(t.Context(), keys.Request{Identity: keys.Server("a")})
	must.NoError(t, err)
	peer := keys.Identity{Role: keys.RoleServer}
	refuses(t, "a node", servers[0].addr, node.ClientTLS(peer))
	strange := stranger.ClientTLS(peer)
	strange.RootCAs = servers[0].keeper.Certificate().ClientTLS(peer).RootCAs
	refuses(t, "a server of another CA", servers[0].addr, strange)
	anonymous := servers[1].keeper.Certificate().ClientTLS(peer)
	anonymous.Certificates = nil
	refuses(t, "somebody without a certificate", servers[0].addr, anonymous)
	// And the other way: a server does not take a node for a server.
	l, err := tls.Listen("tcp", "127.0.0.1:0", node.ServerTLS(peer))
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}()
	_, err = tls.Dial("tcp", l.Addr().String(), servers[0].keeper.Certificate().ClientTLS(peer))
	must.ErrorContains(t, err, "certificate is valid for node.soulbox, not server.soulbox")
	must.NoError(t, l.Close())
	<-done
}
