// Package consul makes a node known to Consul: a service of the agent on its machine, with checks that the node itself
// keeps passing, one of its daemon and one of each thing that it needs.
//
// It owns the registration: one service instance, its checks, and the end of both. It never reads the catalog (that is for
// the control service), never registers with another machine's agent, and a node works on when Consul is gone.
package consul

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Service is the name under which nodes register.
const Service = "soulbox-node"

// The keys of the service's metadata that the control service reads.
const (
	metaNodeID  = "node_id"
	metaName    = "node_name"
	metaVersion = "version"
)

// Config describes the registration. Zero values mean the defaults.
type Config struct {
	Agent   string // address of the local agent; default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500
	Token   string // with service:write for Service; default: CONSUL_HTTP_TOKEN
	Service string // default "soulbox-node"

	NodeID   api.NodeID // required
	NodeName string
	Version  string            // SoulBox version
	Address  string            // host:port of the node's API as others reach it; required
	Meta     map[string]string // more facts; at most 60 of them

	// TTL is how long Consul believes the last report; 15 s. It is renewed three times in that time.
	TTL time.Duration
	// Forget is how long Consul keeps a node that does not report, 24 h by default: its sandboxes may run on. 0: that;
	// Consul's minimum is 1 min.
	Forget time.Duration
	// Concerns are the things that have a check of their own beside that of the daemon.
	Concerns []string
	// Status tells how the node is, in one line that people read in Consul's UI. It must not block. nil: always healthy.
	Status func() Status
	Logger hclog.Logger
}

// Status is what a node says of itself.
type Status struct {
	Critical bool   // it cannot run sandboxes
	Warning  bool   // it can, but something is wrong
	Output   string // one line
	// Concerns say it of each thing that the node needs. Those that Config.Concerns does not name are left out, and of those that are
	// missing here Consul hears nothing: their checks end by their TTL.
	Concerns []Concern
}

// Concern is the status of one thing.
type Concern struct {
	Name   string
	Status string // as Consul has it: passing, warning or critical
	Output string // one line
}

// Registration keeps a node registered. It is made by New and works while Run does.
type Registration struct {
	cfg       Config
	client    *consulapi.Client
	transport *http.Transport
	log       hclog.Logger
	poke      chan struct{}

	mu      sync.Mutex
	lastErr error     // of the last report
	since   time.Time // when it began
}

// New checks cfg. It does not speak to Consul yet.
func New(cfg Config) (*Registration, error) {
	if cfg.Service == "" {
		cfg.Service = Service
	}
	if cfg.TTL == 0 {
		cfg.TTL = 15 * time.Second
	}
	if cfg.Forget == 0 {
		cfg.Forget = 24 * time.Hour
	}
	if cfg.Status == nil {
		cfg.Status = func() Status { return Status{Output: "serving"} }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	var errs []error
	if cfg.NodeID == "" {
		errs = append(errs, errors.New("node id is empty"))
	}
	if _, _, err := hostPort(cfg.Address); err != nil {
		errs = append(errs, err)
	}
	if cfg.TTL < time.Second {
		errs = append(errs, fmt.Errorf("ttl %s is less than 1s", cfg.TTL))
	}
	if cfg.Forget < time.Minute {
		errs = append(errs, fmt.Errorf("forget %s is less than Consul's minimum of 1m", cfg.Forget))
	}
	if len(cfg.Meta) > 60 {
		errs = append(errs, fmt.Errorf("meta has %d entries, at most 60 fit", len(cfg.Meta)))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("registration in consul: %w", err)
	}
	conf := consulapi.DefaultConfig()
	if cfg.Agent != "" {
		conf.Address = cfg.Agent
	}
	if cfg.Token != "" {
		conf.Token = cfg.Token
	}
	client, err := consulapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("consul client: %w", err)
	}
	return &Registration{
		cfg: cfg, client: client, transport: conf.Transport, log: cfg.Logger, poke: make(chan struct{}, 1),
	}, nil
}

// ID returns the id of the service instance, the same for every run of the node.
func (r *Registration) ID() string { return r.cfg.Service + "-" + string(r.cfg.NodeID) }

func (r *Registration) checkID() string { return r.ID() + "-ttl" }

func (r *Registration) concernID(name string) string { return r.ID() + "-" + name }

// Report makes Run tell Consul the node's status now, not only at the next third of the TTL.
func (r *Registration) Report() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Err returns why Consul does not know of the node's state, and since when, or nil.
func (r *Registration) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastErr == nil {
		return nil
	}
	return fmt.Errorf("consul was not told for %s: %w", time.Since(r.since).Round(time.Second), r.lastErr)
}

// Run registers the node and reports its status until ctx ends, then deregisters it. It goes on trying while Consul
// cannot be reached, and registers again with an agent that has forgotten the node. It returns the error of deregistering.
func (r *Registration) Run(ctx context.Context) error {
	defer r.transport.CloseIdleConnections()
	tick := time.NewTicker(r.cfg.TTL / 3)
	defer tick.Stop()
	registered := false
	for {
		var err error
		if registered {
			err = r.update(ctx)
			registered = err == nil
		}
		if !registered { // for the first time, or the agent has forgotten it, or is another one
			if err = r.register(ctx); err == nil {
				err = r.update(ctx)
			}
			registered = err == nil
		}
		if ctx.Err() == nil {
			r.note(err)
		}
		select {
		case <-ctx.Done():
			return r.deregister(context.WithoutCancel(ctx))
		case <-tick.C:
		case <-r.poke:
		}
	}
}

func (r *Registration) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.TTL/3)
	defer cancel()
	host, port, err := hostPort(r.cfg.Address)
	if err != nil {
		return err
	}
	meta := map[string]string{metaNodeID: string(r.cfg.NodeID), metaName: r.cfg.NodeName, metaVersion: r.cfg.Version}
	maps.Copy(meta, r.cfg.Meta)
	maps.DeleteFunc(meta, func(_, v string) bool { return v == "" })
	reg := &consulapi.AgentServiceRegistration{
		ID: r.ID(), Name: r.cfg.Service, Address: host, Port: port, Meta: meta,
		Checks: consulapi.AgentServiceChecks{{
			CheckID: r.checkID(), Name: "SoulBox node daemon", TTL: r.cfg.TTL.String(),
			Notes:                          "The node reports here itself, three times in its TTL.",
			DeregisterCriticalServiceAfter: r.cfg.Forget.String(),
		}},
	}
	for _, name := range r.cfg.Concerns {
		// Critical until the first report, which follows at once: of one that stays as it is the agent tells a new line only minutes later.
		reg.Checks = append(reg.Checks, &consulapi.AgentServiceCheck{CheckID: r.concernID(name), Name: "SoulBox node: " + name, TTL: r.cfg.TTL.String()})
	}
	opts := consulapi.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := r.client.Agent().ServiceRegisterOpts(reg, opts); err != nil {
		return fmt.Errorf("register %s: %w", r.ID(), err)
	}
	return nil
}

func (r *Registration) update(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.TTL/3)
	defer cancel()
	s := r.cfg.Status()
	state := consulapi.HealthPassing
	switch {
	case s.Critical:
		state = consulapi.HealthCritical
	case s.Warning:
		state = consulapi.HealthWarning
	}
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	if err := r.client.Agent().UpdateTTLOpts(r.checkID(), s.Output, state, q); err != nil {
		return fmt.Errorf("report to %s: %w", r.checkID(), err)
	}
	for _, c := range s.Concerns {
		if !slices.Contains(r.cfg.Concerns, c.Name) {
			continue
		}
		if err := r.client.Agent().UpdateTTLOpts(r.concernID(c.Name), c.Output, c.Status, q); err != nil {
			return fmt.Errorf("report to %s: %w", r.concernID(c.Name), err)
		}
	}
	return nil
}

func (r *Registration) deregister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	q := (&consulapi.QueryOptions{}).WithContext(ctx)
	err := r.client.Agent().ServiceDeregisterOpts(r.ID(), q)
	var status consulapi.StatusError
	if err == nil || errors.As(err, &status) && status.Code == http.StatusNotFound {
		r.log.Info("deregistered from consul", "service", r.ID())
		return nil
	}
	return fmt.Errorf("deregister %s from consul: %w", r.ID(), err)
}

// note keeps the outcome of a report and logs its changes.
func (r *Registration) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil && r.lastErr != nil:
		r.log.Info("consul is back", "after", time.Since(r.since).Round(time.Millisecond))
	case err == nil && r.since.IsZero():
		r.log.Info("registered in consul", "service", r.ID(), "address", r.cfg.Address)
	case err != nil && r.lastErr == nil:
		r.log.Warn("consul cannot be told that this node is here; it goes on trying", "error", err)
	}
	if (err == nil) != (r.lastErr == nil) || r.since.IsZero() {
		r.since = time.Now()
	}
	r.lastErr = err
}

func hostPort(address string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("address %q: %w", address, err)
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("address %q: port is not in 1..65535", address)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return "", 0, fmt.Errorf("address %q: others cannot reach it; name the host's own address", address)
	}
	return host, port, nil
}
