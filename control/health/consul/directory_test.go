package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/consul"
	"github.com/soulbox-dev/soulbox/control/health/healthtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg consul.Config) *consul.Directory {
	t.Helper()
	d, err := consul.Open(cfg)
	must.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

func client(t *testing.T, a *agent.Consul) *consulapi.Agent {
	t.Helper()
	conf := consulapi.DefaultConfig()
	conf.Address = a.Config.Address()
	conf.Transport.DisableKeepAlives = true
	c, err := consulapi.NewClient(conf)
	must.NoError(t, err)
	return c.Agent()
}

func register(t *testing.T, c *consulapi.Agent, service, address string, meta map[string]string) {
	t.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(address, "https://"))
	must.NoError(t, err)
	n, err := strconv.Atoi(port)
	must.NoError(t, err)
	must.NoError(t, c.ServiceRegister(&consulapi.AgentServiceRegistration{
		ID: service + "-" + port, Name: service, Address: host, Port: n, Meta: meta,
		Check: &consulapi.AgentServiceCheck{CheckID: "check-" + port, TTL: "1h", Status: consulapi.HealthPassing},
	}))
}

func TestDirectory_keepsContract(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	c := client(t, a)
	n := 0
	healthtest.Run(t, func(t *testing.T) healthtest.Harness {
		n++
		service := fmt.Sprintf("node-of-test-%d", n)
		return healthtest.Harness{
			Directory: open(t, consul.Config{Address: a.Config.Address(), Service: service}),
			Add:       func(t *testing.T, address string) { register(t, c, service, address, nil) },
			Remove: func(t *testing.T, address string) {
				_, port, err := net.SplitHostPort(strings.TrimPrefix(address, "https://"))
				must.NoError(t, err)
				must.NoError(t, c.ServiceDeregister(service+"-"+port))
			},
		}
	})
}

// follow returns the first view that check accepts.
func follow(t *testing.T, d *consul.Directory, what string, check func(health.View) bool) health.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var last health.View
	for {
		v, err := d.Nodes(ctx, last.Index)
		if err != nil {
			t.Fatalf("waiting for %s: %v; the last view is %+v", what, err, last)
		}
		if last = v; check(v) {
			return v
		}
	}
}

func TestDirectory_tellsWhatChecksSay(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	c := client(t, a)
	d := open(t, consul.Config{Address: a.Config.Address()})
	register(t, c, consul.Service, "https://127.0.0.1:1234", map[string]string{consul.MetaNodeID: "the-id", consul.MetaName: "the-name"})
	one := func(status health.Status) func(health.View) bool {
		return func(v health.View) bool { return len(v.Nodes) == 1 && v.Nodes[0].Status == status }
	}
	v := follow(t, d, "a passing node", one(health.Passing))
	must.Eq(t, health.Node{ID: "the-id", Name: "the-name", Address: "https://127.0.0.1:1234", Status: health.Passing}, v.Nodes[0])

	begin := time.Now()
	must.NoError(t, c.UpdateTTL("check-1234", "no disk", consulapi.HealthCritical))
	v = follow(t, d, "a critical node", one(health.Critical))
	t.Logf("seen after %s", time.Since(begin))
	must.Eq(t, "no disk", v.Nodes[0].Reason)

	must.NoError(t, c.UpdateTTL("check-1234", "disk is low", consulapi.HealthWarning))
	v = follow(t, d, "a node with a warning", one(health.Passing))
	must.Eq(t, "disk is low", v.Nodes[0].Reason)

	must.NoError(t, c.EnableNodeMaintenance("kernel upgrade"))
	v = follow(t, d, "a node in maintenance", one(health.Critical))
	must.StrContains(t, v.Nodes[0].Reason, "maintenance: kernel upgrade")
}

func TestDirectory_keepsTheNodesWhileConsulIsDown(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	d := open(t, consul.Config{Address: a.Config.Address(), RetryMax: 200 * time.Millisecond})
	register(t, client(t, a), consul.Service, "https://127.0.0.1:1234", nil)
	follow(t, d, "a passing node", func(v health.View) bool { return len(v.Nodes) == 1 && v.Nodes[0].Status == health.Passing })

	down := time.Now()
	must.NoError(t, a.Signal(syscall.SIGKILL))
	<-a.Done()
	v := follow(t, d, "the stale view", func(v health.View) bool { return !v.StaleSince.IsZero() })
	t.Logf("stale after %s", time.Since(down))
	must.Len(t, 1, v.Nodes)
	must.Eq(t, health.Unknown, v.Nodes[0].Status)
	must.Eq(t, "https://127.0.0.1:1234", v.Nodes[0].Address)
	must.Between(t, 0, time.Since(v.StaleSince), time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := d.Nodes(ctx, v.Index)
	must.ErrorIs(t, err, context.DeadlineExceeded, must.Sprint("it is told once"))

	// It comes back empty, with indexes that start from nothing: the nodes have yet to register again.
	b := agenttest.Consul(t, a.Config)
	v = follow(t, d, "a fresh view", func(v health.View) bool { return v.StaleSince.IsZero() })
	must.SliceEmpty(t, v.Nodes)
	register(t, client(t, b), consul.Service, "https://127.0.0.1:1234", nil)
	follow(t, d, "the node again", func(v health.View) bool { return len(v.Nodes) == 1 && v.Nodes[0].Status == health.Passing })
}

func TestDirectory_saysWhyItKnowsNothing(t *testing.T) {
	d := open(t, consul.Config{Address: "127.0.0.1:1"})
	_, err := d.Nodes(t.Context(), 0)
	var e *api.Error
	must.True(t, errors.As(err, &e))
	must.Eq(t, http.StatusServiceUnavailable, e.Code)
	must.StrContains(t, e.Message, "connection refused")
}
