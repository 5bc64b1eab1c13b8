// Package join finds the other control servers in Consul and makes this one known there.
//
// It owns the registration of one control server, with a check that the server itself keeps passing, and the question who the others are. It decides nothing about who
// may join: a server asks those that it finds here, and they do.
package join

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// Service is the name under which control servers register.
const Service = "soulbox-server"

const (
	ttl       = 15 * time.Second // how long Consul believes the last report; it is renewed three times in that time
	forget    = 24 * time.Hour   // until Consul forgets a server that does not report
	queryTime = 5 * time.Second
)

// Config says where Consul is and who this server is. Zero values mean the defaults.
type Config struct {
	Address    string // of the agent of this machine: "127.0.0.1:8500" or a URL; default: CONSUL_HTTP_ADDR, else that
	Token      string // with service:write for Service, service:read and node:read; default: CONSUL_HTTP_TOKEN
	Datacenter string // whose servers are looked for; default: the agent's
	Service    string // default "soulbox-server"

	ServerID string // required
	Raft     string // host:port on which the other servers reach this one; required
	Version  string
	Logger   hclog.Logger
}

// Consul finds servers. Its Run makes this one known. The caller closes it.
type Consul struct {
	cfg       Config
	client    *consulapi.Client
	transport *http.Transport
	host      string
	port      int
}

// New checks cfg. It does not speak to Consul yet.
func New(cfg Config) (*Consul, error) {
	if cfg.Service == "" {
		cfg.Service = Service
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	host, p, err := net.SplitHostPort(cfg.Raft)
	if err != nil {
		return nil, fmt.Errorf("address of this server: %w", err)
	}
	port, err := strconv.Atoi(p)
	if ip := net.ParseIP(host); err != nil || host == "" || ip != nil && ip.IsUnspecified() {
		return nil, fmt.Errorf("address of this server: others cannot reach %q: configure one to advertise", cfg.Raft)
	}
	conf := consulapi.DefaultConfig()
	if cfg.Address != "" {
		conf.Address = cfg.Address
	}
	if cfg.Token != "" {
		conf.Token = cfg.Token
	}
	client, err := consulapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("consul client: %w", err)
	}
	return &Consul{cfg: cfg, client: client, transport: conf.Transport, host: host, port: port}, nil
}

// Close lets go of connections that are not in use.
func (c *Consul) Close() { c.transport.CloseIdleConnections() }

// Servers returns the Raft addresses of the other servers that Consul knows, those that pass their checks first: one whose check has failed may be the one that leads
// all the same, where only Consul's agent is gone.
func (c *Consul) Servers(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	q := (&consulapi.QueryOptions{Datacenter: c.cfg.Datacenter}).WithContext(ctx)
	entries, _, err := c.client.Health().Service(c.cfg.Service, "", false, q)
	if err != nil {
		return nil, fmt.Errorf("look for servers in consul: %w", err)
	}
	var good, bad []string
	for _, e := range entries {
		host := e.Service.Address
		if host == "" {
			host = e.Node.Address
		}
		addr := net.JoinHostPort(host, strconv.Itoa(e.Service.Port))
		switch {
		case e.Service.Meta["server_id"] == c.cfg.ServerID || slices.Contains(good, addr) || slices.Contains(bad, addr):
		case e.Checks.AggregatedStatus() == consulapi.HealthPassing:
			good = append(good, addr)
		default:
			bad = append(bad, addr)
		}
	}
	if len(good)+len(bad) == 0 {
		return nil, fmt.Errorf("consul knows no other server of the service %s", c.cfg.Service)
	}
	return append(good, bad...), nil
}

func (c *Consul) id() string { return c.cfg.Service + "-" + c.cfg.ServerID }

// Run makes this server known until ctx ends. It goes on trying while Consul cannot be reached, and registers again with an agent that has forgotten it.
func (c *Consul) Run(ctx context.Context) {
	tick := time.NewTicker(ttl / 3)
	defer tick.Stop()
	registered, told := false, false // told: the log has it
	for {
		err := c.report(ctx)
		if err != nil { // for the first time, or the agent has forgotten it, or is another one
			if err = c.register(ctx); err == nil {
				err = c.report(ctx)
			}
		}
		switch {
		case ctx.Err() != nil:
		case err != nil && (registered || !told):
			c.cfg.Logger.Warn("consul cannot be told that this server is here; it goes on trying", "error", err)
		case err == nil && !registered:
			c.cfg.Logger.Info("registered in consul", "service", c.id(), "address", c.cfg.Raft)
		}
		registered, told = err == nil, true
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := c.deregister(context.WithoutCancel(ctx)); err != nil {
				c.cfg.Logger.Warn("deregister from consul", "service", c.id(), "error", err)
			}
			return
		}
	}
}

func (c *Consul) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	reg := &consulapi.AgentServiceRegistration{
		ID: c.id(), Name: c.cfg.Service, Address: c.host, Port: c.port, Meta: map[string]string{"server_id": c.cfg.ServerID, "version": c.cfg.Version},
		Check: &consulapi.AgentServiceCheck{
			CheckID: c.id() + "-ttl", Name: "SoulBox control server", TTL: ttl.String(), Notes: "The server reports here itself, three times in its TTL.",
			DeregisterCriticalServiceAfter: forget.String(),
		},
	}
	return c.client.Agent().ServiceRegisterOpts(reg, consulapi.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx))
}

func (c *Consul) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	return c.client.Agent().UpdateTTLOpts(c.id()+"-ttl", "serving", consulapi.HealthPassing, q)
}

func (c *Consul) deregister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	err := c.client.Agent().ServiceDeregisterOpts(c.id(), (&consulapi.QueryOptions{}).WithContext(ctx))
	var status consulapi.StatusError
	if errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil
	}
	return err
}
