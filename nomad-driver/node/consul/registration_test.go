package consul_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/consul"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry reads what Consul's catalog holds of the service.
type registry struct{ client *consulapi.Client }

func newRegistry(t *testing.T, a *agent.Consul) registry {
	t.Helper()
	conf := consulapi.DefaultConfig()
	conf.Address = a.Config.Address()
	conf.Transport.DisableKeepAlives = true
	c, err := consulapi.NewClient(conf)
	must.NoError(t, err)
	return registry{c}
}

func (r registry) wait(t *testing.T, what string, check func([]*consulapi.ServiceEntry) bool) []*consulapi.ServiceEntry {
	t.Helper()
	var entries []*consulapi.ServiceEntry
	agenttest.Eventually(t, 20*time.Second, func() error {
		var err error
		entries, _, err = r.client.Health().Service(consul.Service, "", false, nil)
		if err == nil && !check(entries) {
			err = fmt.Errorf("not yet: %s; there are %d", what, len(entries))
		}
		return err
	})
	return entries
}

func status(want string) func([]*consulapi.ServiceEntry) bool {
	return func(e []*consulapi.ServiceEntry) bool { return len(e) == 1 && e[0].Checks.AggregatedStatus() == want }
}

// run runs a registration until the test or stop ends it.
func run(t *testing.T, cfg consul.Config) (r *consul.Registration, stop func() error) {
	t.Helper()
	r, err := consul.New(cfg)
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return r, stop
}

func TestRegistration_livesWithItsNode(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	reg := newRegistry(t, a)
	var state atomic.Pointer[consul.Status]
	state.Store(&consul.Status{Output: "3 of 1000 sandboxes run"})
	r, stop := run(t, consul.Config{
		Agent: a.Config.Address(), NodeID: "n1", NodeName: "one", Version: "1.2.3", Address: "127.0.0.1:7302",
		Meta: map[string]string{"kernel": "6.1"}, Status: func() consul.Status { return *state.Load() },
	})
	e := reg.wait(t, "passing", status(consulapi.HealthPassing))[0]
	must.Eq(t, "127.0.0.1", e.Service.Address)
	must.Eq(t, 7302, e.Service.Port)
	must.Eq(t, map[string]string{"node_id": "n1", "node_name": "one", "version": "1.2.3", "kernel": "6.1"}, e.Service.Meta)
	must.NoError(t, r.Err())
	output := ""
	for _, c := range e.Checks {
		if c.ServiceID == r.ID() {
			output = c.Output
		}
	}
	must.Eq(t, "3 of 1000 sandboxes run", output)

	state.Store(&consul.Status{Critical: true, Output: "overlay is missing"})
	r.Report()
	reg.wait(t, "critical at once", status(consulapi.HealthCritical))
	state.Store(&consul.Status{Warning: true, Output: "disk is low"})
	r.Report()
	reg.wait(t, "warning at once", status(consulapi.HealthWarning))

	must.NoError(t, stop())
	reg.wait(t, "deregistered", func(e []*consulapi.ServiceEntry) bool { return len(e) == 0 })
}

func TestRegistration_hasACheckForEachConcern(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	reg := newRegistry(t, a)
	var state atomic.Pointer[consul.Status]
	state.Store(&consul.Status{Output: "serving", Concerns: []consul.Concern{
		{Name: "disk", Status: "passing", Output: "40.0 of 99.9 GiB are free"},
		{Name: "clock", Status: "warning", Output: "it was set by 3s, 1m0s ago"},
		{Name: "unknown", Status: "critical", Output: "nobody asked"},
	}})
	r, stop := run(t, consul.Config{
		Agent: a.Config.Address(), NodeID: "n1", NodeName: "one", Address: "127.0.0.1:7302", Concerns: []string{"disk", "clock"},
		Status: func() consul.Status { return *state.Load() },
	})
	e := reg.wait(t, "a warning", status(consulapi.HealthWarning))[0]
	got := map[string]string{}
	for _, c := range e.Checks {
		if c.ServiceID == r.ID() {
			got[c.CheckID] = c.Name + " is " + c.Status + ": " + c.Output
		}
	}
	must.Eq(t, map[string]string{
		r.ID() + "-ttl":   "SoulBox node daemon is passing: serving",
		r.ID() + "-disk":  "SoulBox node: disk is passing: 40.0 of 99.9 GiB are free",
		r.ID() + "-clock": "SoulBox node: clock is warning: it was set by 3s, 1m0s ago",
	}, got)

	state.Store(&consul.Status{Critical: true, Output: "full", Concerns: []consul.Concern{
		{Name: "disk", Status: "critical", Output: "full"}, {Name: "clock", Status: "passing", Output: "fine"},
	}})
	r.Report()
	reg.wait(t, "critical", status(consulapi.HealthCritical))
	must.NoError(t, stop())
	reg.wait(t, "deregistered", func(e []*consulapi.ServiceEntry) bool { return len(e) == 0 })
}

func TestRegistration_turnsCriticalWhenItsNodeIsGone(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	reg := newRegistry(t, a)
	var blocked atomic.Bool
	gate := make(chan struct{})
	r, _ := run(t, consul.Config{
		Agent: a.Config.Address(), NodeID: "n1", Address: "127.0.0.1:7302", TTL: time.Second,
		Status: func() consul.Status {
			if blocked.Load() {
				<-gate // as if the process had been stopped
			}
			return consul.Status{Output: "serving"}
		},
	})
	defer close(gate)
	reg.wait(t, "passing", status(consulapi.HealthPassing))
	blocked.Store(true)
	r.Report()
	e := reg.wait(t, "critical", status(consulapi.HealthCritical))[0]
	for _, c := range e.Checks {
		if c.ServiceID == r.ID() {
			must.True(t, strings.HasPrefix(c.Output, "TTL expired"), must.Sprint(c.Output))
		}
	}
}

func TestRegistration_comesBackAfterTheAgent(t *testing.T) {
	a := agenttest.Consul(t, agent.ConsulConfig{})
	r, stop := run(t, consul.Config{Agent: a.Config.Address(), NodeID: "n1", Address: "127.0.0.1:7302", TTL: time.Second})
	newRegistry(t, a).wait(t, "passing", status(consulapi.HealthPassing))
	must.NoError(t, a.Signal(syscall.SIGKILL))
	<-a.Done()
	agenttest.Eventually(t, 10*time.Second, func() error {
		if r.Err() == nil {
			return errors.New("it has not noticed yet")
		}
		return nil
	})
	must.ErrorContains(t, r.Err(), "consul was not told for")
	b := agenttest.Consul(t, a.Config) // knows of nothing
	newRegistry(t, b).wait(t, "registered again", status(consulapi.HealthPassing))
	must.NoError(t, stop())
}

func TestRegistration_endsWithoutConsul(t *testing.T) {
	_, stop := run(t, consul.Config{Agent: "127.0.0.1:1", NodeID: "n1", Address: "127.0.0.1:7302"})
	must.ErrorContains(t, stop(), "connection refused")
}

func TestNew_namesWhatIsWrong(t *testing.T) {
	good := consul.Config{NodeID: "n", Address: "127.0.0.1:7302"}
	tests := []struct {
		name   string
		change func(*consul.Config)
		want   string
	}{
		{"no id", func(c *consul.Config) { c.NodeID = "" }, "node id is empty"},
		{"no address", func(c *consul.Config) { c.Address = "" }, "address"},
		{"every address", func(c *consul.Config) { c.Address = "0.0.0.0:7302" }, "others cannot reach it"},
		{"port 0", func(c *consul.Config) { c.Address = "127.0.0.1:0" }, "port is not in 1..65535"},
		{"short ttl", func(c *consul.Config) { c.TTL = time.Millisecond }, "less than 1s"},
		{"short forget", func(c *consul.Config) { c.Forget = time.Second }, "minimum of 1m"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			_, err := consul.New(cfg)
			must.ErrorContains(t, err, tc.want)
		})
	}
}
