// Package service runs one server of the control service in this process: the parts of package core, the HTTP server in
// front of them, and what they need of the outside, as a configuration file or a caller says.
//
// It owns the wiring and the order of start and end. It decides nothing about sandboxes.
package service

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/build"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/forward"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/server"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Config of a Service: the parts' own, with what only the HTTP side needs.
type Config struct {
	core.Config

	Listen string      // host:port of the API
	TLS    *tls.Config // of the API; nil: plain HTTP

	// Registries are hosts with ports, in this network, that images of builds may be pulled from.
	Registries []string

	// Audit is how the audit log is kept. Empty fields mean the defaults: a folder in DataDir, and a signing key in a file beside it.
	Audit audit.Config

	// Closers are called when the service has ended, last to first. Open takes them over, also where it fails.
	Closers []func() error
	// Links are asked after the API keys; Login are those of them that people can log in with.
	Links []auth.Link
	Login []api.AuthLink
	// Background runs beside the service until it ends, such as the renewal of certificates.
	Background []func(ctx context.Context)
}

// Service is a control server that listens. Its Run serves.
type Service struct {
	Core *core.Core

	cfg      Config
	audit    *audit.Log
	http     *server.Server
	edge     *edge.Edge
	builds   *build.Service
	forward  *forward.Forwarder // nil: there are no other servers
	listener net.Listener
	log      hclog.Logger
}

// Open starts the parts and listens. The caller calls Run, or Close.
func Open(ctx context.Context, cfg Config) (s *Service, err error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.CheckNode == nil {
		cfg.CheckNode = checkNode
	}
	s = &Service{cfg: cfg, log: cfg.Logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	// The address first: where it is taken, everything else would be in vain.
	var lc net.ListenConfig
	if s.listener, err = lc.Listen(ctx, "tcp", cfg.Listen); err != nil {
		return s, fmt.Errorf("listen: %w", err)
	}
	if cfg.TLS != nil {
		s.listener = tls.NewListener(s.listener, cfg.TLS)
	}
	if err := s.openAudit(); err != nil {
		return s, err
	}
	s.cfg.Record = s.audit.Note
	cfg = s.cfg
	core.HoldGC()
	traffic := new(edge.Traffic)
	cfg.Quiet = traffic.Await
	if s.Core, err = core.Open(ctx, cfg.Config); err != nil {
		return s, err
	}
	if s.builds, err = build.New(build.Config{
		State: s.Core.State, Sandboxes: s.Core.Sandboxes, Templates: s.Core.Templates, Registries: cfg.Registries, Dir: filepath.Join(cfg.DataDir, "uploads"), Logger: cfg.Logger.Named("build"),
	}); err != nil {
		return s, err
	}
	links := &edge.Links{Ring: s.Core.LinkKeys}
	ec := edge.Config{Sandboxes: s.Core.Reach(), Links: links, Traffic: traffic, Denied: s.denied, Logger: cfg.Logger.Named("edge")}
	sc := server.Config{
		Links:     links,
		Lifecycle: s.Core.Sandboxes, Auth: auth.NewChain(append([]auth.Link{s.Core.Auth}, cfg.Links...)...), Login: cfg.Login, Access: s.Core.Access, Tenants: s.Core.State, Policy: s.Core.State, Templates: templates{s.Core.Templates}, Builds: s.builds, Keys: s.Core.Auth, Fleet: s.Core.Fleet, Nodes: s.Core.Sandboxes,
		Audit: s.audit, Rebalance: s.Core.Rebalance, Quotas: s.Core.Quotas(), Secrets: s.Core.Secrets, Pools: s.Core.Pools,
		Watcher: s.Core.State, Backups: s.Core.State, Servers: s.Core.State, Ready: s.ready, Logger: cfg.Logger.Named("http"),
	}
	if cfg.RaftAddr != "" { // there may be other servers
		s.forward = forward.New(s.Core.State, cfg.Logger.Named("forward"))
		ec.Leader, sc.Leader, sc.Peers = s.forward.Bring, s.forward, s.Core.State
	}
	s.edge = edge.New(ec)
	sc.Edge, sc.Front = s.edge, s.edge.Wrap
	s.http, err = server.New(sc)
	return s, err
}

// openAudit opens the audit log, before anything can happen.
func (s *Service) openAudit() (err error) {
	c := s.cfg.Audit
	if c.Dir == "" {
		c.Dir = filepath.Join(s.cfg.DataDir, "audit")
	}
	if c.Server == "" {
		c.Server = s.cfg.ServerID
	}
	if c.Signer == nil {
		if c.Signer, err = local.OpenSigner(filepath.Join(s.cfg.DataDir, "audit-keys.json")); err != nil {
			return err
		}
	}
	if c.Logger == nil {
		c.Logger = s.log.Named("audit")
	}
	s.audit, err = audit.Open(c)
	return err
}

// denied records whom the edge does not let in. The log tells repeats of one source by their number, so that nobody fills it.
func (s *Service) denied(r *http.Request, d edge.Denial) {
	source := r.RemoteAddr
	if from, err := netip.ParseAddrPort(source); err == nil {
		source = from.Addr().Unmap().String()
	}
	s.audit.Deny(audit.Event{
		Tenant: d.Sandbox.Tenant, Action: "sandbox.connect", Resource: "sandbox", ResourceID: string(d.Sandbox.ID), Result: audit.ResultDenied,
		Source: source, Agent: r.UserAgent(),
		Details: map[string]string{"status": strconv.Itoa(d.Status), "port": strconv.Itoa(d.Port), "why": d.Why, "via": "edge"},
	})
}

// ready returns why the service cannot serve: without a leader nothing can be changed. That no node is connected is no
// reason: what is known can still be read, and clients see the nodes.
func (s *Service) ready() error {
	if id, _ := s.Core.State.Leader(); id == "" {
		return errors.New("no control server leads at the moment")
	}
	return nil
}

// checkNode refuses nodes that this version does not work with.
func checkNode(n nodeapi.Node) error {
	if n.APIVersion != nodeapi.Version {
		return fmt.Errorf("node %s speaks version %d of the node API, this server %d", n.Name, n.APIVersion, nodeapi.Version)
	}
	return version.Compatible("node "+n.Name, n.Version, version.MinNode)
}

// Address returns the URL of the API.
func (s *Service) Address() string {
	scheme := "http://"
	if s.cfg.TLS != nil {
		scheme = "https://"
	}
	return scheme + s.listener.Addr().String()
}

// Run serves until ctx ends and closes the service.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range s.cfg.Background {
		wg.Go(func() { f(ctx) })
	}
	err := s.http.Run(ctx, s.listener)
	cancel()
	wg.Wait()
	return errors.Join(err, s.Close())
}

// Close ends a service that does not run.
func (s *Service) Close() error {
	var errs []error
	if s.listener != nil {
		if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		s.listener = nil
	}
	if s.builds != nil {
		s.builds.Close()
		s.builds = nil
	}
	if s.edge != nil {
		s.edge.Close()
		s.edge = nil
	}
	if s.forward != nil {
		s.forward.Close()
		s.forward = nil
	}
	if s.Core != nil {
		errs = append(errs, s.Core.Close())
		s.Core = nil
	}
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
		s.audit = nil
	}
	for i := len(s.cfg.Closers) - 1; i >= 0; i-- {
		errs = append(errs, s.cfg.Closers[i]())
	}
	s.cfg.Closers = nil
	return errors.Join(errs...)
}
