package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/keys"
	keyring "github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/server"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// inTurn places sandboxes on one node after the other.
type inTurn struct {
	next   atomic.Int64
	placer []*local.Placer
}

func (p *inTurn) Place(ctx context.Context, req placement.Request) error {
	return p.placer[(p.next.Add(1)-1)%int64(len(p.placer))].Place(ctx, req)
}

func (p *inTurn) Stop(ctx context.Context, id api.SandboxID) error {
	for _, one := range p.placer {
		if err := one.Stop(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *inTurn) List(ctx context.Context) ([]placement.Placed, error) {
	var out []placement.Placed
	for _, one := range p.placer {
		list, err := one.List(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// newFarStack is a control service with two nodes, "one" and "two", that it reaches over TCP with mutual TLS alone. certificate is one
// that nodes let in.
func newFarStack(t *testing.T) (s *stack, certificate *tls.Config, addresses map[string]string, nodes []*nodeapi.Client) {
	t.Helper()
	sandboxtest.RequireRoot(t)
	dir, err := os.MkdirTemp("", "sbf")
	must.NoError(t, err)
	must.NoError(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	ca, err := keyring.Open(filepath.Join(dir, "ca"))
	must.NoError(t, err)
	issue := func(who keys.Identity) *keys.Certificate {
		c, err := ca.Issue(t.Context(), keys.Request{Identity: who, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
		must.NoError(t, err)
		return c
	}
	own := issue(keys.Server("control"))
	nodeTLS := func(health.Node) (*tls.Config, error) {
		return own.ClientTLS(keys.Identity{Role: keys.RoleNode}), nil
	}
	placer, addresses := &inTurn{}, map[string]string{}
	var entries []health.Node
	for i, name := range []string{"one", "two"} {
		home := filepath.Join(dir, name)
		must.NoError(t, os.MkdirAll(home, 0o755))
		must.NoError(t, keys.WriteFiles(home, issue(keys.Node(api.NodeID("node-"+name)))))
		addresses[name] = agenttest.Address(t)
		parent := "soulbox-test-" + filepath.Base(dir) + name
		t.Cleanup(func() {
			if m, err := cgroup.Detect("/sys/fs/cgroup", parent); err == nil {
				must.NoError(t, m.Close())
			}
		})
		n, err := node.New(node.Config{
			StateDir: home + "/s", RunDir: home + "/r", InitPath: sandboxtest.Init(t), CgroupParent: parent, Version: version.Version,
			ID: api.NodeID("node-" + name), Name: name, Address: addresses[name], IDRangeBase: uint32(1<<20 + i<<28),
			TLS: node.TLS{
				CAFile: home + "/" + keys.CAFile, CertFile: home + "/" + keys.CertFile, KeyFile: home + "/" + keys.KeyFile,
				ClientNames: []string{keys.RoleServer.DNSName()},
			},
		})
		must.NoError(t, err)
		inBackground(t, n.Run)
		cfg, err := nodeTLS(health.Node{})
		must.NoError(t, err)
		client := nodeapi.NewTLS(addresses[name], cfg)
		t.Cleanup(client.Close)
		nodes = append(nodes, client)
		one := local.New(client)
		t.Cleanup(one.Close)
		placer.placer = append(placer.placer, one)
		entries = append(entries, health.Node{Address: "https://" + addresses[name], Status: health.Passing})
	}
	directory, err := static.New(entries...)
	must.NoError(t, err)
	log := hclog.NewNullLogger()
	c, err := core.Open(t.Context(), core.Config{
		DataDir: dir + "/c", Directory: directory, Placer: placer, CheckNode: server.CheckNode, NodeTLS: nodeTLS, Logger: log,
	})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, c.Close()) })
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, c.ConnectNodes(wait, 2))
	return serve(t, c, log), own.ClientTLS(keys.Identity{Role: keys.RoleNode}), addresses, nodes
}

func TestFar_sandboxesAreReachedThroughTheirNodes(t *testing.T) {
	s, certificate, addresses, nodes := newFarStack(t)
	base, err := s.client.Template(t.Context(), "base")
	must.NoError(t, err)
	for _, n := range nodes { // the one that it was not imported at gets its copy in the background
		until(t, func() bool {
			s.core.Templates.Spread(t.Context())
			_, err := n.Template(t.Context(), base.Digest)
			return err == nil
		})
	}
	boxes := map[string]api.Sandbox{}
	for range addresses {
		sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base", Timeout: ptr[int64](120)})
		must.NoError(t, err)
		boxes[strings.TrimPrefix(string(sb.Node), "node-")] = sb.Sandbox
	}
	must.MapLen(t, 2, boxes)
	token := func(sb api.Sandbox) string {
		var access struct{ EnvdAccessToken string }
		a := s.do(t, "GET", "/sandboxes/"+string(sb.ID), "")
		must.Eq(t, 200, a.status)
		must.NoError(t, json.Unmarshal([]byte(a.body), &access))
		return access.EnvdAccessToken
	}
	request := func(sb api.Sandbox, key, prefer string) *http.Request {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.addr+"/files?path=/home/user/where", nil)
		must.NoError(t, err)
		req.Header.Set("E2b-Sandbox-Id", string(sb.ID))
		req.Header.Set("E2b-Sandbox-Port", "49983")
		req.Header.Set("X-Access-Token", key)
		if prefer != "" {
			req.Header.Set("Prefer", prefer)
		}
		return req
	}
	stay := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	read := func(c *http.Client, req *http.Request) (*http.Response, string) {
		resp, err := c.Do(req)
		must.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		return resp, string(b)
	}
	for name, sb := range boxes {
		must.NoError(t, s.client.WriteFile(t.Context(), sb.ID, "/home/user/where", strings.NewReader("on "+name), api.FileOptions{}))
		must.Eq(t, "on "+name, s.sh(t, sb.ID, "cat /home/user/where"))
		key := token(sb)
		// Through the control service, which speaks to the node with its certificate.
		resp, body := read(stay, request(sb, key, ""))
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "on "+name, body)

		// A client that would rather go there itself is told where.
		resp, _ = read(stay, request(sb, key, "redirect"))
		must.Eq(t, http.StatusTemporaryRedirect, resp.StatusCode)
		must.Eq(t, "redirect", resp.Header.Get("Preference-Applied"))
		where := resp.Header.Get("Location")
		must.StrHasPrefix(t, "https://"+addresses[name]+"/", where)

		// The node lets in who has a certificate of a server and the sandbox's token: one of the two is not enough.
		direct := func(cfg *tls.Config, key string) (*http.Response, error) {
			tr := &http.Transport{TLSClientConfig: cfg}
			defer tr.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, where, nil)
			must.NoError(t, err)
			req.Header.Set("X-Access-Token", key)
			return (&http.Client{Transport: tr}).Do(req)
		}
		resp, err := direct(certificate, key)
		must.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, "on "+name, string(b))
		resp, err = direct(certificate, "")
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, http.StatusUnauthorized, resp.StatusCode)
		_, err = direct(&tls.Config{InsecureSkipVerify: true}, key) //nolint:gosec // the server is not what is tried
		must.Error(t, err)
	}
	// One sandbox's token is nobody else's key, wherever they are.
	resp, _ := read(stay, request(boxes["one"], token(boxes["two"]), ""))
	must.Eq(t, http.StatusUnauthorized, resp.StatusCode)
}
