package fleet_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start opens a fleet of nodes. change may be nil.
func start(t *testing.T, change func(*fleet.Config), nodes ...health.Node) (*fleet.Fleet, *static.Directory) {
	t.Helper()
	dir, err := static.New(nodes...)
	must.NoError(t, err)
	cfg := fleet.Config{Directory: dir, RetryMin: time.Millisecond, RetryMax: 20 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	f, err := fleet.Open(cfg)
	must.NoError(t, err)
	t.Cleanup(f.Close)
	return f, dir
}

func entry(n *fleettest.Node) health.Node { return health.Node{Address: "unix://" + n.Socket} }

func connected(t *testing.T, f *fleet.Fleet, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, f.WaitNodes(ctx, n))
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
	}
}

func request(id api.SandboxID) nodeapi.CreateRequest {
	return nodeapi.CreateRequest{ID: id, Template: "base", Owner: nodeapi.Owner{Kind: "test"}}
}

// sees reports whether the fleet's view of a sandbox is in that state.
func sees(f *fleet.Fleet, id api.SandboxID, s nodeapi.State) bool {
	found := f.Find(id)
	return len(found) == 1 && found[0].Sandbox.State == s
}

func TestFleet_followsANode(t *testing.T) {
	n := fleettest.New(t)
	before, after := api.NewSandboxID(), api.NewSandboxID()
	n.Run(request(before))
	f, _ := start(t, nil, entry(n))
	connected(t, f, 1)
	must.True(t, sees(f, before, nodeapi.StateRunning), must.Sprint("a connected node's view is complete"))
	n.Run(request(after))
	until(t, "a new one", func() bool { return sees(f, after, nodeapi.StateRunning) })
	n.End(after, nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: 3})
	until(t, "its end", func() bool { return sees(f, after, nodeapi.StateStopped) })
	c, err := f.Client(n.ID())
	must.NoError(t, err)
	must.NoError(t, c.Delete(t.Context(), after))
	until(t, "its removal", func() bool { return len(f.Find(after)) == 0 })
	last, ok := f.Ended(n.ID(), after)
	must.True(t, ok)
	must.Eq(t, 3, last.Exit.Code)
	must.Eq(t, []api.SandboxID{before}, f.IDs())
	n.PutTemplate("new", []byte("new"))
	until(t, "a new template", func() bool {
		node, ok := f.Node(n.ID())
		return ok && len(node.Self.Templates) == 2
	})
}

func TestFleet_nodeKilledAndBack(t *testing.T) {
	n := fleettest.New(t)
	a, b := api.NewSandboxID(), api.NewSandboxID()
	n.Run(request(a))
	f, _ := start(t, nil, entry(n))
	connected(t, f, 1)
	n.Kill()
	until(t, "it is away", func() bool { node, ok := f.Node(n.ID()); return ok && !node.Connected })
	must.True(t, sees(f, a, nodeapi.StateRunning), must.Sprint("the last view stays"))
	must.False(t, f.Find(a)[0].Connected)
	_, err := f.Client(n.ID())
	must.Eq(t, 503, api.StatusOf(err))
	n.Run(request(b))
	n.Start(t)
	connected(t, f, 1)
	must.True(t, sees(f, b, nodeapi.StateRunning), must.Sprint("what came meanwhile is in the new view"))
}

func TestFleet_silentNodeIsAway(t *testing.T) {
	n := fleettest.New(t)
	n.Beat = time.Hour
	f, _ := start(t, func(c *fleet.Config) { c.BeatTimeout = 50 * time.Millisecond }, entry(n))
	until(t, "it is away for want of beats", func() bool {
		node, ok := f.Node(n.ID())
		return ok && !node.Connected && node.Problem == "no sign of life for 50ms"
	})
}

func TestFleet_refusesNodes(t *testing.T) {
	n := fleettest.New(t)
	for name, c := range map[string]struct {
		change  func(*nodeapi.Node)
		entry   health.Node
		problem string
	}{
		"newer API":       {func(s *nodeapi.Node) { s.APIVersion = 99 }, entry(n), "upgrade the control service"},
		"older API":       {func(s *nodeapi.Node) { s.APIVersion = 0 }, entry(n), "upgrade the node"},
		"no id":           {func(s *nodeapi.Node) { s.ID = "" }, entry(n), "has no id"},
		"another id":      {func(s *nodeapi.Node) {}, health.Node{ID: "x", Address: "unix://" + n.Socket}, "answers at the address of node x"},
		"no TLS settings": {func(s *nodeapi.Node) {}, health.Node{Address: "https://127.0.0.1:1"}, "mutual TLS"},
		"odd address":     {func(s *nodeapi.Node) {}, health.Node{Address: "ftp://x"}, "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			var was nodeapi.Node
			n.Self(func(s *nodeapi.Node) { was = *s; c.change(s) })
			t.Cleanup(func() { n.Self(func(s *nodeapi.Node) { *s = was }) })
			f, _ := start(t, nil, c.entry)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			must.ErrorContains(t, f.WaitNodes(ctx, 1), c.problem)
		})
	}
}

func TestFleet_followsTheDirectory(t *testing.T) {
	a, b := fleettest.New(t), fleettest.New(t)
	f, dir := start(t, func(c *fleet.Config) { c.Unlisted = 200 * time.Millisecond }, entry(a))
	connected(t, f, 1)
	must.NoError(t, dir.Set(entry(a), entry(b)))
	connected(t, f, 2)
	began := time.Now()
	must.NoError(t, dir.Set(entry(b)))
	until(t, "a is let go", func() bool { _, ok := f.Node(a.ID()); return !ok })
	must.GreaterEq(t, 200*time.Millisecond, time.Since(began))
	_, err := f.Client(b.ID())
	must.NoError(t, err)
	_, err = f.Client(a.ID())
	must.Eq(t, 503, api.StatusOf(err))
}

// A directory that has lost everything does not take the nodes along that are connected.
func TestFleet_keepsWhomItIsConnectedToWhenTheDirectoryForgets(t *testing.T) {
	a := fleettest.New(t)
	f, dir := start(t, func(c *fleet.Config) { c.Unlisted = time.Hour }, entry(a))
	connected(t, f, 1)
	must.NoError(t, dir.Set())
	until(t, "that it is not listed", func() bool {
		n, ok := f.Node(a.ID())
		return ok && n.Status.State == fleet.Degraded && n.Status.Reason != ""
	})
	_, err := f.Client(a.ID())
	must.NoError(t, err)
	must.NoError(t, dir.Set(entry(a)))
	until(t, "that it is again", func() bool {
		n, ok := f.Node(a.ID())
		return ok && n.Status.State == fleet.Healthy
	})
	must.NoError(t, dir.Set(health.Node{ID: a.ID(), Address: "unix:///nowhere"}))
	until(t, "it to be where it is listed, and only there", func() bool {
		list := f.Nodes()
		return len(list) == 1 && list[0].Entry.Address == "unix:///nowhere"
	})
}

func TestFleet_twoAddressesOfOneNodeCountOnce(t *testing.T) {
	n := fleettest.New(t)
	f, _ := start(t, nil, entry(n), health.Node{Address: "unix://" + n.Socket[:len(n.Socket)-len("/node.sock")] + "/./node.sock"})
	connected(t, f, 1)
	n.Run(request(api.NewSandboxID()))
	until(t, "one report", func() bool { return len(f.IDs()) == 1 })
	must.Len(t, 1, f.Find(f.IDs()[0]))
}

func TestWaiter_seesReports(t *testing.T) {
	n := fleettest.New(t)
	f, _ := start(t, nil, entry(n))
	connected(t, f, 1)
	t.Run("that come", func(t *testing.T) {
		id := api.NewSandboxID()
		w := f.Await(id)
		defer w.Close()
		n.Run(request(id))
		got, err := w.Ran(t.Context())
		must.NoError(t, err)
		must.Eq(t, n.ID(), got.Node)
		must.Eq(t, nodeapi.StateRunning, got.Sandbox.State)
	})
	t.Run("that are there", func(t *testing.T) {
		id := api.NewSandboxID()
		n.Run(request(id))
		until(t, "it is in the view", func() bool { return sees(f, id, nodeapi.StateRunning) })
		w := f.Await(id)
		defer w.Close()
		_, err := w.Ran(t.Context())
		must.NoError(t, err)
	})
	t.Run("though it ended at once", func(t *testing.T) {
		id := api.NewSandboxID()
		w := f.Await(id)
		defer w.Close()
		n.Run(request(id))
		n.End(id, nodeapi.Exit{Reason: nodeapi.ExitMainExited})
		got, err := w.Ran(t.Context())
		must.NoError(t, err)
		must.False(t, got.Sandbox.StartedAt.IsZero())
	})
	t.Run("until its context ends", func(t *testing.T) {
		w := f.Await(api.NewSandboxID())
		defer w.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := w.Ran(ctx)
		must.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestFleet_tellsEveryChange(t *testing.T) {
	n := fleettest.New(t)
	var mu sync.Mutex
	told := map[api.SandboxID]int{}
	f, _ := start(t, func(c *fleet.Config) {
		c.OnChange = func(_ api.NodeID, id api.SandboxID) {
			mu.Lock()
			defer mu.Unlock()
			told[id]++
		}
	}, entry(n))
	connected(t, f, 1)
	id := api.NewSandboxID()
	n.Run(request(id))
	n.End(id, nodeapi.Exit{})
	until(t, "created, running, stopped", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return told[id] == 3
	})
}
