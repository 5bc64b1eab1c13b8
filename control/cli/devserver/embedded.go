package devserver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

// Start starts the node's daemon and a control server in this process and returns once the two are connected. It needs root.
// The caller closes the server.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	name, slot := identity(cfg.StateDir)
	socket := filepath.Join(cfg.StateDir, "run", "node.sock")
	criu, _ := stack.Find("criu") // without it a pause keeps processes in memory, and says so
	n, err := node.New(node.Config{
		StateDir: filepath.Join(cfg.StateDir, "node"), RunDir: filepath.Dir(socket), Socket: socket, InitPath: cfg.InitPath,
		CRIUPath: criu, CgroupParent: name, IDRangeBase: slot, Version: version.Version, Logger: cfg.Logger.Named("node"),
		Network: node.Network{Mode: cfg.Network, Publish: node.Publish{Address: netip.MustParseAddr(publishAddress), From: publishFrom, To: publishTo}},
	})
	if err != nil {
		return nil, err
	}
	nodeCtx, stopNode := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	s := newServer(ctx, func() error {
		stopNode()
		wg.Wait() // its error is told by ended
		return nil
	})
	wg.Go(func() { s.ended(n.Run(nodeCtx)) })
	if err := s.embedded(ctx, cfg, socket); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) embedded(ctx context.Context, cfg Config, socket string) error {
	directory, err := static.New(health.Node{Name: "local", Address: "unix://" + socket})
	if err != nil {
		return err
	}
	client := nodeapi.NewUnix(socket)
	placer := local.New(client)
	conf := service.Config{Config: coreConfig(cfg, "server"), Listen: cfg.Listen, Registries: cfg.Registries, Closers: []func() error{
		func() error { client.Close(); return nil },
		func() error { placer.Close(); return nil },
	}}
	conf.Directory, conf.Placer = directory, placer
	return s.serve(ctx, conf)
}

// slots is how many ranges of user ids there are below 2^31, each with room for a node's thousand sandboxes.
const slots = 30

// identity derives from the folder the name of the control group and the first user id of the sandboxes.
func identity(dir string) (group string, firstID uint32) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(filepath.Clean(dir)))
	sum := h.Sum32()
	return fmt.Sprintf("soulbox-dev-%08x", sum), (1 + sum%slots) << 26
}
