// Package coretest makes a control server on fake nodes, for tests.
package coretest

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/control/reconcile"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Caller is who the tests act for.
var Caller = auth.Identity{Kind: auth.KindKey, Subject: "0123456789abcdef", KeyID: "0123456789abcdef", Tenant: state.DefaultTenant, Name: "test"}

// Server is a control server with one fake node, which places locally. It can be stopped and started again.
type Server struct {
	*core.Core
	Node      *fleettest.Node
	Directory *static.Directory
	Config    core.Config // change it before Start
}

// New returns a server that runs until the test ends, on a node of its own. change may be nil.
func New(t testing.TB, change func(*Server)) *Server {
	t.Helper()
	node := fleettest.New(t)
	dir, err := static.New(health.Node{Name: "local", Address: "unix://" + node.Socket})
	if err != nil {
		t.Fatal(err)
	}
	client := nodeapi.NewUnix(node.Socket)
	t.Cleanup(client.Close)
	placer := local.New(client)
	t.Cleanup(placer.Close)
	s := &Server{Node: node, Directory: dir, Config: core.Config{
		DataDir: t.TempDir(), Directory: dir, Placer: placer, Logger: Logger(t),
		Nodes: func(c *fleet.Config) { c.RetryMax, c.Unlisted = 100*time.Millisecond, 200*time.Millisecond },
		Pace:  Quick,
	}}
	if change != nil {
		change(s)
	}
	t.Cleanup(s.Stop)
	s.Start(t)
	return s
}

// Quick is a pace of the reconciler for tests.
func Quick(c *reconcile.Config) {
	c.Interval = 50 * time.Millisecond
	c.OrphanGrace = 100 * time.Millisecond
	c.StopGrace = 100 * time.Millisecond
	c.HoldGrace = 3 * time.Second
	c.LostAfter = 200 * time.Millisecond
	c.StartTimeout = 2 * time.Second
	c.PurgeEvery = 100 * time.Millisecond
	c.SnapshotTimeout = 300 * time.Millisecond
	c.CollectEvery = 150 * time.Millisecond
}

// Logger writes warnings to the test's log.
func Logger(t testing.TB) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: output{t}})
}

type output struct{ t testing.TB }

func (o output) Write(b []byte) (int, error) {
	o.t.Log(string(b))
	return len(b), nil
}

// Start starts the server with what its folder holds, and waits for the node.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := core.Open(ctx, s.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.Core = c
	if err := c.ConnectNodes(ctx, 1); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server. Its folder stays until the test ends.
func (s *Server) Stop() {
	if s.Core != nil {
		_ = s.Core.Close()
		s.Core = nil
	}
}

// Params ask for a sandbox of the template base.
func Params() lifecycle.CreateParams {
	return lifecycle.CreateParams{Caller: Caller, Template: "base", Timeout: time.Minute}
}

// Until polls until ok, or fails the test.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
