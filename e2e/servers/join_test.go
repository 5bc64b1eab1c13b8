package servers

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// quick are settings of an autopilot for tests: a server is dead after seconds.
const quick = "autopilot {\n  last_contact_threshold = \"2s\"\n  dead_server_last_contact_threshold = \"5s\"\n  server_stabilization_time = \"2s\"\n}\n"

// asked are the servers that the load asks.
func (c *cluster) asked() []*server {
	if c.kept != nil {
		return c.kept
	}
	return c.servers
}

// add starts another server. raft is what its block raft says of the others.
func (c *cluster) add(t *testing.T, name, raft string) *server {
	t.Helper()
	s := &server{name: name, dir: filepath.Join(c.dir, name), http: http.DefaultClient, listen: agenttest.Address(t), raft: agenttest.Address(t)}
	c.configure(t, s, keys.Server(name), raft, quick)
	c.servers = append(c.servers, s)
	s.start(t)
	return s
}

func list(servers ...*server) string {
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, fmt.Sprintf("%q", s.raft))
	}
	return fmt.Sprintf("  retry_join = [%s]\n", strings.Join(addrs, ", "))
}

// voters waits until these servers, and no others, are there, healthy and with votes.
func (c *cluster) voters(t *testing.T, by *server, servers ...*server) {
	t.Helper()
	var want []string
	for _, s := range servers {
		want = append(want, s.name)
	}
	slices.Sort(want)
	poll(t, fmt.Sprint(want, " to be the voters"), func() error {
		st, err := c.client(t, by).AutopilotState(t.Context())
		if err != nil {
			return err
		}
		got := slices.Sorted(slices.Values(st.Voters))
		if !slices.Equal(got, want) || !st.Healthy || len(st.Servers) != len(want) {
			return fmt.Errorf("%+v", st)
		}
		must.Eq(t, (len(want)-1)/2, st.FailureTolerance)
		return nil
	})
}

// TestJoin_byListAndADeadServerIsReplaced begins with one server. Two join it; one is killed for good under load, a fourth joins, and the dead one is removed.
func TestJoin_byListAndADeadServerIsReplaced(t *testing.T) {
	c := newCluster(t)
	a := c.add(t, "a", "")
	c.ready(t)
	c.firstKey(t)
	first, err := c.client(t, a).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)

	begin := time.Now()
	b := c.add(t, "b", list(a))
	dead := c.add(t, "c", "  retry_join = [\"127.0.0.1:1\", \""+b.raft+"\"]\n") // nobody, and one that does not lead, or is not there yet
	c.ready(t)
	_, err = c.client(t, b).GetSandbox(t.Context(), first.ID)
	must.NoError(t, err)
	_, err = c.ask(b, "GET", "/sandboxes/"+string(first.ID)+"?stale")
	must.NoError(t, err, must.Sprint("who serves has the others' tables"))
	c.voters(t, a, a, b, dead)
	t.Logf("two have joined and have votes after %s", time.Since(begin).Round(time.Millisecond))
	cfg, err := c.client(t, b).AutopilotConfig(t.Context())
	must.NoError(t, err)
	must.True(t, cfg.CleanupDeadServers)
	must.Eq(t, 5000, cfg.DeadServerLastContactMs)

	c.kept = slices.Clone(c.servers)
	l := c.load(t, 6, "base")
	l.more(t, 30)
	dead.kill(t)
	killed := time.Now()
	l.more(t, 30)
	poll(t, "its failure to be shown", func() error {
		st, err := c.client(t, a).AutopilotState(t.Context())
		if err != nil {
			return err
		}
		for _, s := range st.Servers {
			if s.ID == dead.name && !s.Healthy && s.FailedSince != nil && s.LastContactMs > 5000 {
				must.Eq(t, 0, st.FailureTolerance)
				return nil
			}
		}
		return fmt.Errorf("%+v", st)
	})
	servers, err := c.client(t, a).ControlServers(t.Context())
	must.NoError(t, err)
	must.Len(t, 3, servers.Servers, must.Sprint("fewer than three are never left"))

	c.servers = slices.DeleteFunc(c.servers, func(s *server) bool { return s == dead })
	d := c.add(t, "d", list(dead, b))
	c.ready(t)
	c.voters(t, d, a, b, d)
	t.Logf("a fourth has replaced the dead one %s after its end", time.Since(killed).Round(time.Millisecond))
	l.more(t, 30)
	// With the dead one gone from the count, another may fail.
	lead := c.leader(t)
	lead.kill(t)
	l.more(t, 20)
	lead.start(t)
	c.ready(t)
	l.stop()
	c.kept = c.servers
	l.nothingLost(t)

	// What happened without a request is in the audit log of who led then.
	found := map[string]bool{}
	for _, s := range c.servers {
		for e, err := range c.client(t, s).AllAudit(t.Context(), api.AuditOptions{Resource: "server"}) {
			must.NoError(t, err)
			found[e.Action+" "+e.ResourceID] = true
		}
	}
	for _, want := range []string{"server.joined b", "server.promoted c", "server.joined d", "server.promoted d", "server.removed c"} {
		must.MapContainsKey(t, found, want)
	}
}

// TestJoin_onlyWithACertificateOfItsOwn has servers ask whose certificates are of others.
func TestJoin_onlyWithACertificateOfItsOwn(t *testing.T) {
	c := newCluster(t)
	a := c.add(t, "a", "")
	c.ready(t)
	c.firstKey(t)
	for _, tc := range []struct {
		name string
		as   keys.Identity
		want string
	}{
		{"x", keys.Server("another"), "its certificate is of server another, not of x"},
		{"y", keys.Node("y"), "tls: "},
	} {
		s := &server{name: tc.name, dir: filepath.Join(c.dir, tc.name), http: http.DefaultClient, listen: agenttest.Address(t), raft: agenttest.Address(t)}
		c.configure(t, s, tc.as, list(a), quick)
		s.start(t)
		poll(t, "the refusal to be told", func() error {
			b, err := os.ReadFile(s.dir + ".log")
			if err == nil && !strings.Contains(string(b), tc.want) {
				err = errors.New(string(b))
			}
			return err
		})
	}
	out, err := c.client(t, a).ControlServers(t.Context())
	must.NoError(t, err)
	must.Len(t, 1, out.Servers)
}

// TestJoin_byConsul has servers find each other in a real Consul, which is started after the first of them.
func TestJoin_byConsul(t *testing.T) {
	agenttest.Binary(t, "consul")
	ports := agenttest.Ports(t, 3)
	where := agent.ConsulConfig{HTTP: ports[0], Server: ports[1], Serf: ports[2]}
	block := fmt.Sprintf("  join {\n    consul {\n      address = %q\n    }\n  }\n", where.Address())
	c := newCluster(t)
	own := agenttest.Address(t)
	a := &server{name: "a", dir: filepath.Join(c.dir, "a"), http: http.DefaultClient, listen: agenttest.Address(t), raft: own}
	c.configure(t, a, keys.Server("a"), fmt.Sprintf("  peer \"a\" { address = %q }\n%s", own, block), quick) // the first begins the cluster
	c.servers = append(c.servers, a)
	a.start(t)
	b := c.add(t, "b", block) // there is no Consul yet: it goes on asking
	poll(t, "it to ask in vain", func() error {
		out, err := os.ReadFile(b.dir + ".log")
		if err == nil && !strings.Contains(string(out), "look for servers in consul") {
			err = errors.New(string(out))
		}
		return err
	})
	agenttest.Consul(t, where)
	d := c.add(t, "c", block)
	c.ready(t)
	c.firstKey(t)
	c.voters(t, b, a, b, d)
	_, err := c.client(t, d).CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
}
