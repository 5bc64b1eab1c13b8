package core_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/core"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/fleet/fleettest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/health/static"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/placement/local"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nodesEnv has this program be so many nodes, for BenchmarkScale: what they take of memory and processor is not the service's.
const nodesEnv = "SOULBOX_TEST_NODES"

// tick is the word of a sandbox's metadata by which a report is told from the one before.
const tick = "tick"

// TestNodes is no test: it is the nodes of BenchmarkScale, as a process of its own. It prints their sockets, and for each line that it reads, every node reports every one
// of its sandboxes with that line.
func TestNodes(t *testing.T) {
	var n int
	if _, err := fmt.Sscan(os.Getenv(nodesEnv), &n); err != nil {
		t.Skip("it is started by BenchmarkScale")
	}
	nodes := make([]*fleettest.Node, n)
	sockets := make([]string, n)
	for i := range nodes {
		nodes[i] = fleettest.New(t)
		sockets[i] = nodes[i].Socket
	}
	must.NoError(t, json.NewEncoder(os.Stdout).Encode(sockets))
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word := in.Text()
		for _, node := range nodes {
			node.Touch(func(sb *nodeapi.Sandbox) {
				m := map[string]string{}
				maps.Copy(m, sb.Metadata)
				m[tick] = word
				sb.Metadata = m
			})
		}
	}
}

// spread is a placer over many nodes: a sandbox's id says which is its own.
type spread []*local.Placer

func (s spread) of(id api.SandboxID) *local.Placer {
	h := fnv.New32a()
	_, _ = io.WriteString(h, string(id))
	return s[h.Sum32()%uint32(len(s))]
}

func (s spread) Place(ctx context.Context, req placement.Request) error {
	req.Prefer = "" // each of them has one node, and none to choose
	return s.of(req.Node.ID).Place(ctx, req)
}

func (s spread) Stop(ctx context.Context, id api.SandboxID) error { return s.of(id).Stop(ctx, id) }

func (s spread) List(ctx context.Context) (all []placement.Placed, err error) {
	for _, p := range s {
		list, err := p.List(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// BenchmarkScale is the control service with 10,000 sandboxes on 200 nodes that speak the real protocol and are a process of their own: what it takes of memory, how many reports
// of nodes it takes a second, and how long a claim takes beside them. One round is a claim alone; fifty at once come after all of them.
func BenchmarkScale(b *testing.B) {
	const nodes, sandboxes, slots = 200, 10_000, 100
	sockets, say := startNodes(b, nodes)
	empty := inUse()
	var entries []health.Node
	var placers spread
	for i, socket := range sockets {
		entries = append(entries, health.Node{Name: fmt.Sprint("node-", i), Address: "unix://" + socket, Status: health.Passing})
		client := nodeapi.NewUnix(socket)
		b.Cleanup(client.Close)
		p := local.New(client)
		b.Cleanup(p.Close)
		placers = append(placers, p)
	}
	directory, err := static.New(entries...)
	must.NoError(b, err)
	c, err := core.Open(b.Context(), core.Config{DataDir: b.TempDir(), Directory: directory, Placer: placers, Logger: hclog.NewNullLogger()})
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, c.Close()) })
	must.NoError(b, c.ConnectNodes(b.Context(), nodes))
	connected := inUse()

	hour := lifecycle.CreateParams{Caller: coretest.Caller, Template: "base", Timeout: time.Hour}
	var fill errgroup.Group
	fill.SetLimit(64)
	began := time.Now()
	for range sandboxes {
		fill.Go(func() error {
			_, _, err := c.Sandboxes.Create(b.Context(), hour)
			return err
		})
	}
	must.NoError(b, fill.Wait())
	creates := sandboxes / time.Since(began).Seconds()
	full := inUse()

	live, err := c.State.Live()
	must.NoError(b, err)
	must.Len(b, sandboxes, live)
	var rates []float64
	for round := range 3 {
		word := fmt.Sprint(round)
		began := time.Now()
		_, err := fmt.Fprintln(say, word)
		must.NoError(b, err)
		for _, sb := range live {
			for !slices.ContainsFunc(c.Fleet.Find(sb.ID), func(f fleet.Found) bool { return f.Sandbox.Metadata[tick] == word }) {
				time.Sleep(time.Millisecond)
			}
		}
		rates = append(rates, sandboxes/time.Since(began).Seconds())
	}
	slices.Sort(rates)

	claims := newClaims(b, c, slots)
	for b.Loop() {
		claims.sync(b)
		claims.one(b, hour)
		claims.refilled(b, slots)
	}
	alone := claims.took
	claims.took = nil
	for range 4 {
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { claims.one(b, hour) })
		}
		wg.Wait()
		claims.refilled(b, slots)
	}
	b.ReportMetric(creates, "creates/s")
	b.ReportMetric(float64(connected-empty)/nodes/1024, "node-KiB")
	b.ReportMetric(float64(full-connected)/sandboxes/1024, "sandbox-KiB")
	b.ReportMetric(float64(full)/(1<<20), "heap-MiB")
	b.ReportMetric(rates[len(rates)/2], "events/s")
	for name, d := range map[string][]time.Duration{"claim-": alone, "herd-": claims.took, "floor-": claims.syncs} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), name+"p99-µs")
	}
	b.ReportMetric(0, "ns/op")
}

// startNodes starts the nodes, and returns their sockets and where to tell them.
func startNodes(b *testing.B, n int) (sockets []string, say io.Writer) {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestNodes$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", nodesEnv, n))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must.NoError(b, err)
	out, err := cmd.StdoutPipe()
	must.NoError(b, err)
	must.NoError(b, cmd.Start())
	b.Cleanup(func() {
		must.NoError(b, in.Close())
		_, _ = io.Copy(io.Discard, out)
		must.NoError(b, cmd.Wait())
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must.NoError(b, err)
	must.NoError(b, json.NewDecoder(strings.NewReader(line)).Decode(&sockets))
	must.Len(b, n, sockets)
	return sockets, in
}

// inUse is what this process has on its heap, after what is not used has gone.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// claims are creates that find a slot.
type claims struct {
	c     *core.Core
	disk  *os.File
	mu    sync.Mutex
	took  []time.Duration
	syncs []time.Duration // of 4 KiB
}

func newClaims(b *testing.B, c *core.Core, slots int) *claims {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, f.Close()) })
	base := "base"
	_, err = c.Pools.Create(b.Context(), coretest.Caller.Tenant, "bench", api.NewPool{Name: "quick", PoolSpec: api.PoolSpec{Template: &base, Min: &slots}})
	must.NoError(b, err)
	cl := &claims{c: c, disk: f}
	cl.refilled(b, slots)
	return cl
}

func (c *claims) sync(b *testing.B) {
	b.Helper()
	began := time.Now()
	_, err := c.disk.WriteAt(make([]byte, 4096), 0)
	must.NoError(b, errors.Join(err, unix.Fdatasync(int(c.disk.Fd()))))
	c.syncs = append(c.syncs, time.Since(began))
}

func (c *claims) one(b *testing.B, p lifecycle.CreateParams) {
	began := time.Now()
	sb, _, err := c.c.Sandboxes.Create(b.Context(), p)
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, took)
	if err != nil || !sb.Warm {
		b.Errorf("a claim: %v, warm %v", err, sb.Warm)
	}
}

func (c *claims) refilled(b *testing.B, slots int) {
	b.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		p, err := c.c.Pools.Get(coretest.Caller.Tenant, "quick")
		must.NoError(b, err)
		if p.Status.Ready >= slots {
			return
		}
		if time.Now().After(end) {
			b.Fatalf("the pool is not full: %+v", p.Status)
		}
	}
}
