// Package core puts the parts of a control server together: state, keys, fleet, templates, sandboxes and the reconciler.
//
// It owns their order of start and end. It serves nothing itself: package server does that with the parts.
package core

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/pool"
	"github.com/soulbox-dev/soulbox/control/quota"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/rebalance"
	"github.com/soulbox-dev/soulbox/control/reconcile"
	"github.com/soulbox-dev/soulbox/control/secret"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Config says how a control server runs. Zero values mean the defaults of the parts.
type Config struct {
	DataDir   string           // required; holds raft/ and the bootstrap key
	Directory health.Directory // required
	Placer    placement.Placer // required

	RaftAddr      string // host:port for the other servers; empty: a cluster of one without a listener
	RaftAdvertise string
	ServerID      string
	Peers         []state.Peer
	RaftTLS       *state.TLS
	// Others returns where other servers may be, which this one asks to let it in. nil: it asks Peers.
	Others    func(ctx context.Context) ([]string, error)
	Autopilot *state.Autopilot // nil: the default

	NodeTLS   func(health.Node) (*tls.Config, error) // to nodes over TCP
	CheckNode func(nodeapi.Node) error               // versions of nodes that this server can work with

	// LinkKeys sign links, and SnapshotKeys what snapshots say of themselves. nil: keys of this server, or, where there are several,
	// keys that they share in the state.
	LinkKeys     keys.Ring
	SnapshotKeys keys.Ring
	// SecretKeys encrypt tenants' secrets; else as those.
	SecretKeys keys.Ring

	MaxLifetime    time.Duration    // of a sandbox
	DefaultTimeout time.Duration    // of a sandbox
	Rebalance      rebalance.Policy // when the leader moves sandboxes by itself
	Retention      time.Duration    // of ended sandboxes
	MaxEnded       int              // ended sandboxes kept
	DefaultQuota   map[string]int64 // of tenants without limits of their own, by name; nil: as it was set

	// Quiet returns when no request to a sandbox is under way at this server's edge, or ctx ends. nil: nobody knows.
	Quiet func(ctx context.Context, id api.SandboxID)

	// Record is told what happens without a request: ends, and what the reconciler puts right. nil: nobody.
	Record func(audit.Event)

	Logger hclog.Logger
	Now    func() time.Time

	// Sandboxes, Pace and Nodes change the parts' own settings further, before they start. For tests and rare needs.
	Sandboxes func(*lifecycle.Config)
	Pace      func(*reconcile.Config)
	Nodes     func(*fleet.Config)
}

// Core is a running control server without its HTTP side.
type Core struct {
	State     *state.Server
	Auth      *auth.Service
	Access    *rbac.Evaluator
	Fleet     *fleet.Fleet
	Templates *template.Service
	Sandboxes *lifecycle.Service
	Pools     *pool.Service
	Rebalance *rebalance.Service
	Quota     *quota.Ledger

	LinkKeys     keys.Ring
	SnapshotKeys keys.Ring
	Secrets      *secret.Service

	// Bootstrap is the first API key, where this start made it. BootstrapFile holds it in any case, until somebody
	// removes it.
	Bootstrap     auth.Secret
	Bootstrapped  bool // this start made it
	BootstrapFile string

	reconciler   *reconcile.Reconciler
	nodeKeys     *nodeKeys
	secretKeys   keys.Ring
	rings        []*local.Ring // that the leader makes
	defaultQuota map[string]int64
}

const (
	raftDir       = "raft"
	bootstrapFile = "bootstrap-key"
	spreadEvery   = 15 * time.Second
	leaderWait    = 30 * time.Second
)

// Open starts a control server: the state of DataDir is read, a leader is known, and where this server leads, the
// bootstrap key exists. Nodes connect in the background. The caller closes it.
func Open(ctx context.Context, cfg Config) (_ *Core, err error) {
	if cfg.DataDir == "" || cfg.Directory == nil || cfg.Placer == nil {
		return nil, errors.New("core: data folder, directory and placer are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	c := &Core{BootstrapFile: filepath.Join(cfg.DataDir, bootstrapFile)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	lead := make(chan struct{}) // closed once the parts that a leader runs are there
	c.Quota, c.defaultQuota = quota.New(cfg.Now), cfg.DefaultQuota
	st, err := state.Open(state.Config{
		Counter: c.Quota, Quiet: cfg.Quiet,
		Dir: filepath.Join(cfg.DataDir, raftDir), ServerID: cfg.ServerID, Bind: cfg.RaftAddr, Advertise: cfg.RaftAdvertise,
		Peers: cfg.Peers, TLS: cfg.RaftTLS, Others: cfg.Others, Autopilot: cfg.Autopilot, OnMember: member(cfg.Record), Logger: cfg.Logger.Named("state"),
		OnLeader: func(ctx context.Context) {
			select {
			case <-lead:
				c.lead(ctx, cfg.Logger)
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		return nil, err
	}
	c.State = st
	if err := c.openRings(cfg); err != nil {
		return nil, err
	}
	if err := c.build(cfg); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, leaderWait)
	if cfg.Others != nil { // it goes on asking until somebody lets it in
		wait, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	if err := st.WaitLeader(wait); err != nil {
		return nil, err
	}
	if st.Leads() {
		if c.Bootstrap, c.Bootstrapped, err = c.Auth.Bootstrap(ctx, c.BootstrapFile); err != nil {
			return nil, err
		}
	}
	close(lead)
	return c, nil
}

// build makes the parts on top of the state.
func (c *Core) build(cfg Config) error {
	run := newRun()
	c.Auth = auth.New(c.State, cfg.Now)
	c.Access = rbac.New(c.State)
	c.Secrets = secret.New(c.State, c.secretKeys, cfg.Now)
	var marked marker
	fc := fleet.Config{
		Directory: cfg.Directory, TLS: cfg.NodeTLS, Check: cfg.CheckNode, OnChange: marked.onChange, Logger: cfg.Logger.Named("fleet"),
	}
	fc.Mark, fc.Now = c.nodeMark, cfg.Now
	c.nodeKeys = newNodeKeys(c.SnapshotKeys, cfg.Logger.Named("keys"))
	fc.Greet = c.nodeKeys.greet
	if cfg.Nodes != nil {
		cfg.Nodes(&fc)
	}
	var err error
	if c.Fleet, err = fleet.Open(fc); err != nil {
		return err
	}
	if c.Templates, err = template.New(template.Config{
		State: c.State, Fleet: c.Fleet, Logger: cfg.Logger.Named("template"), Now: cfg.Now,
	}); err != nil {
		return err
	}
	if c.Pools, err = pool.New(pool.Config{
		State: c.State, Fleet: c.Fleet, Placer: cfg.Placer, Templates: c.Templates, Quotas: c.Quotas(), Run: run, Now: cfg.Now,
		Size:   func(t state.Template, cpu, memory, disk *int64) error { return c.Sandboxes.Size(t, cpu, memory, disk) },
		Logger: cfg.Logger.Named("pool"),
	}); err != nil {
		return err
	}
	lc := lifecycle.Config{
		Pools: c.Pools, Secrets: c.Secrets,
		State: c.State, Fleet: c.Fleet, Placer: cfg.Placer, Templates: c.Templates, Run: run, Now: cfg.Now, Quota: c.Quota,
		Quiet: c.State.Quiet, Logger: cfg.Logger.Named("lifecycle"), MaxLifetime: cfg.MaxLifetime, DefaultTimeout: cfg.DefaultTimeout,
	}
	if cfg.Sandboxes != nil {
		cfg.Sandboxes(&lc)
	}
	if c.Sandboxes, err = lifecycle.New(lc); err != nil {
		return err
	}
	if c.Rebalance, err = rebalance.New(rebalance.Config{
		State: c.State, Fleet: c.Fleet, Mover: c.Sandboxes, Policy: cfg.Rebalance, Logger: cfg.Logger.Named("rebalance"), Now: cfg.Now,
	}); err != nil {
		return err
	}
	rc := reconcile.Config{
		Secrets: c.Secrets,
		State:   c.State, Fleet: c.Fleet, Placer: cfg.Placer, Run: run, Now: cfg.Now, Logger: cfg.Logger.Named("reconcile"),
		Retention: cfg.Retention, MaxEnded: cfg.MaxEnded, Record: cfg.Record,
	}
	if cfg.RaftAddr == "" {
		rc.SnapshotTimeout = time.Minute // there is no other service
	}
	if cfg.Pace != nil {
		cfg.Pace(&rc)
	}
	if c.reconciler, err = reconcile.New(rc); err != nil {
		return err
	}
	marked.set(c.reconciler)
	return nil
}

// member records servers that come and go.
func member(record func(audit.Event)) func(state.MemberChange) {
	if record == nil {
		return nil
	}
	return func(c state.MemberChange) {
		e := audit.Event{Action: "server." + c.What, Resource: "server", ResourceID: c.ID, User: "system:autopilot", Result: audit.ResultOK, Details: map[string]string{"address": c.Addr}}
		if c.Reason != "" {
			e.Details["reason"] = c.Reason
		}
		record(e)
	}
}

// nodeMark is what operators have said about a node, as the fleet shows it.
func (c *Core) nodeMark(id api.NodeID) fleet.Mark {
	m, err := c.State.NodeMark(id)
	if err != nil || m.Order == "" {
		return fleet.Mark{}
	}
	out := fleet.Mark{State: fleet.Draining, Reason: m.Reason, By: m.By, At: m.At}
	if m.Order == state.NodeUnhealthy {
		out.State = fleet.Unhealthy
	}
	return out
}

// Quotas reads and changes what tenants may use.
func (c *Core) Quotas() *quota.Service { return &quota.Service{Ledger: c.Quota, State: c.State} }

// lead is what the leader runs.
func (c *Core) lead(ctx context.Context, log hclog.Logger) {
	if err := c.Quotas().SetDefault(ctx, c.defaultQuota); err != nil && ctx.Err() == nil {
		log.Error("the default quota of the configuration does not count", "error", err)
	}
	// The server that led when the cluster began may have died before it had made the key.
	if _, made, err := c.Auth.Bootstrap(ctx, c.BootstrapFile); err != nil && ctx.Err() == nil {
		log.Error("the first key was not made", "error", err)
	} else if made {
		log.Info("the first key was made", "file", c.BootstrapFile)
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.makeRings(ctx, log) })
	wg.Go(func() { c.nodeKeys.run(ctx, c.Fleet) })
	wg.Go(func() { c.reconciler.Run(ctx) })
	wg.Go(func() { c.Pools.Run(ctx) })
	wg.Go(func() { c.Sandboxes.Drain(ctx) })
	wg.Go(func() { c.Rebalance.Run(ctx) })
	wg.Go(func() { c.Auth.Run(ctx) })
	wg.Go(func() { c.Templates.Run(ctx, spreadEvery) })
	wg.Wait()
}

// Close ends the parts in the order that lets each finish. Sandboxes go on.
func (c *Core) Close() error {
	var err error
	if c.State != nil {
		err = c.State.Close() // ends what the leader runs
	}
	if c.Fleet != nil {
		c.Fleet.Close()
	}
	return err
}

// marker passes the fleet's changes to the reconciler, which is made after the fleet.
type marker struct {
	mu sync.Mutex
	r  *reconcile.Reconciler
}

func (m *marker) set(r *reconcile.Reconciler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.r = r
}

func (m *marker) onChange(_ api.NodeID, id api.SandboxID) {
	m.mu.Lock()
	r := m.r
	m.mu.Unlock()
	if r != nil && id != "" {
		r.Mark(id)
	}
}

// newRun names this run of the control service.
func newRun() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	return hex.EncodeToString(b[:])
}

// ConnectNodes returns once n nodes are connected, or with an error that names what is wrong with the others.
func (c *Core) ConnectNodes(ctx context.Context, n int) error {
	if err := c.Fleet.WaitNodes(ctx, n); err != nil {
		return fmt.Errorf("wait for nodes: %w", err)
	}
	return nil
}
