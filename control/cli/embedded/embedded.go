// Package embedded is SoulBox without a cluster: the daemon of this machine's node and one control server, in this process.
//
// It owns the folder that it is given and everything in it, and the control group and the user ids that are derived from the
// folder's path, so that two of them never meet. The control server speaks to the node over its socket, as it would to any.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Config of a Server.
type Config struct {
	StateDir string // absolute; made where it is missing
	Listen   string // host:port of the API
	InitPath string // of soulbox-init; empty: beside this program, or in /usr/libexec/soulbox
	Logger   hclog.Logger
}

// Server is a node and a control server that run.
type Server struct {
	Address string // URL of the API
	APIKey  string // of the first key; empty where somebody removed its file
	KeyFile string // which holds it

	stop    func() // ends service, then node
	done    chan struct{}
	mu      sync.Mutex
	failure error // why one of them ended by itself
}

// connectWait is how long the node may take to answer the control server. It is in the same process.
const connectWait = 10 * time.Second

// Start starts both and returns once the node is connected. It needs root. The caller closes the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("state folder %q is not an absolute path", cfg.StateDir)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	name, slot := identity(cfg.StateDir)
	socket := filepath.Join(cfg.StateDir, "run", "node.sock")
	n, err := node.New(node.Config{
		StateDir: filepath.Join(cfg.StateDir, "node"), RunDir: filepath.Dir(socket), Socket: socket, InitPath: cfg.InitPath,
		CgroupParent: name, IDRangeBase: slot, Version: version.Version, Logger: cfg.Logger.Named("node"),
	})
	if err != nil {
		return nil, err
	}
	s := &Server{done: make(chan struct{})}
	// The two outlive ctx: they end in Close, in their order.
	live := context.WithoutCancel(ctx)
	nodeCtx, stopNode := context.WithCancel(live)
	serviceCtx, stopService := context.WithCancel(live)
	var nodes, services sync.WaitGroup
	s.stop = sync.OnceFunc(func() {
		stopService()
		services.Wait()
		stopNode()
		nodes.Wait()
	})
	nodes.Go(func() { s.ended(n.Run(nodeCtx)) })
	if err := s.open(ctx, cfg, socket, serviceCtx, &services); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// identity derives from the folder the name of the control group and the first user id of the sandboxes. Each of 32 slots
// has room for a node's thousand sandboxes.
func identity(dir string) (group string, firstID uint32) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(filepath.Clean(dir)))
	sum := h.Sum32()
	return fmt.Sprintf("soulbox-dev-%08x", sum), (1 + sum%32) << 26
}

func (s *Server) open(ctx context.Context, cfg Config, socket string, live context.Context, wg *sync.WaitGroup) error {
	client := nodeapi.NewUnix(socket)
	placer := local.New(client)
	closers := []func() error{
		func() error { client.Close(); return nil },
		func() error { placer.Close(); return nil },
	}
	directory, err := static.New(health.Node{Name: "local", Address: "unix://" + socket})
	if err != nil {
		return err
	}
	svc, err := service.Open(ctx, service.Config{
		Listen:  cfg.Listen,
		Closers: closers,
		Config: core.Config{
			DataDir: filepath.Join(cfg.StateDir, "server"), Directory: directory, Placer: placer, Logger: cfg.Logger.Named("server"),
		},
	})
	if err != nil {
		return err
	}
	s.Address, s.KeyFile = svc.Address(), svc.Core.BootstrapFile
	c := svc.Core
	wg.Go(func() { s.ended(svc.Run(live)) })
	key, err := os.ReadFile(s.KeyFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("API key: %w", err)
	}
	s.APIKey = strings.TrimSpace(string(key))
	wait, cancel := context.WithTimeout(ctx, connectWait)
	defer cancel()
	return c.ConnectNodes(wait, 1)
}

// ended notes that one of the two ended.
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

// Done is closed when the node or the control server ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Close ends both and returns what went wrong. Sandboxes go on.
func (s *Server) Close() error {
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}
