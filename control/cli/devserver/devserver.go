// Package devserver runs SoulBox on one machine for its developers: a control server in this process, and with it either the
// node's daemon in this process too, or a cluster of real agents beside it.
//
// It owns the folder that it is given and everything in it, and the control group and the user ids that are derived from the
// folder's path, so that none of two takes the other's sandboxes for its own. The control server speaks to the node over its API, as it would to any.
package devserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/core"
)

// Config of a Server.
type Config struct {
	StateDir string // absolute; made where it is missing
	Listen   string // host:port of the API
	InitPath string // of soulbox-init; empty: beside this program, or in /usr/libexec/soulbox
	Logger   hclog.Logger
	Network  string // node.Network.Mode of the node
	// FreePorts gives the agents of a cluster ports that are free instead of their usual ones.
	FreePorts bool
	// Registries are hosts with ports, in this network, that images of builds may be pulled from.
	Registries []string
}

// Where ports of sandboxes may be published: for this machine only.
const (
	publishAddress = "127.0.0.1"
	publishFrom    = 20_000
	publishTo      = 29_999
)

func (c *Config) check() error {
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("state folder %q is not an absolute path", c.StateDir)
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	return nil
}

// Server is a control server that runs, and what it has its sandboxes on.
type Server struct {
	Address string // URL of the API
	APIKey  string // of the first key; empty where somebody removed its file
	KeyFile string // which holds it
	Links   []Link // where people can look

	ctx    context.Context // of what runs; ends in Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	below  func() error // ends what the control server stands on

	done    chan struct{}
	mu      sync.Mutex
	failure error // why a part ended by itself
}

// Link is a page for people.
type Link struct{ Name, URL, Note string }

// connectWait is how long the node may take to answer the control server. It runs already.
const connectWait = 10 * time.Second

func newServer(ctx context.Context, below func() error) *Server {
	s := &Server{done: make(chan struct{}), below: below}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx)) // it ends in Close, in its order
	return s
}

// serve opens the control server, runs it and waits for the node.
func (s *Server) serve(ctx context.Context, cfg service.Config) error {
	svc, err := service.Open(ctx, cfg)
	if err != nil {
		return err
	}
	s.Address, s.KeyFile = svc.Address(), svc.Core.BootstrapFile
	c := svc.Core
	s.wg.Go(func() { s.ended(svc.Run(s.ctx)) })
	key, err := os.ReadFile(s.KeyFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("API key: %w", err)
	}
	s.APIKey = strings.TrimSpace(string(key))
	wait, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	return c.ConnectNodes(wait, 1)
}

func coreConfig(cfg Config, dir string) core.Config {
	return core.Config{DataDir: filepath.Join(cfg.StateDir, dir), Logger: cfg.Logger.Named("server")}
}

// ended notes that a part ended.
func (s *Server) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = errors.Join(s.failure, err)
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// Done is closed when a part ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Close ends the control server, then what it stands on, and returns what went wrong. Sandboxes go on, unless they are on a
// cluster, which ends with them.
func (s *Server) Close() error {
	s.cancel()
	s.wg.Wait()
	err := s.below()
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.failure, err)
}
