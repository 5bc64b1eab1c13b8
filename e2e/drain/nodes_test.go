package drain

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestNodes is what operators and clients see of two nodes: their checks in Consul, where rules place sandboxes, drains and rebalancing from the
// command line, and a burst on a pool. The parts share one cluster.
func TestNodes(t *testing.T) {
	c := start(t, "")
	for _, m := range c.nodes {
		c.run("node", "meta", "apply", "-node-id", string(m.id), "zone="+m.name)
	}
	c.until("Nomad's servers to have the labels", func() error {
		for _, m := range c.nodes {
			if meta := c.meta(m); meta["zone"] != m.name {
				return fmt.Errorf("node %s has %v", m.name, meta)
			}
		}
		return nil
	})
	for _, part := range []struct {
		name string
		f    func(*testing.T, *cluster)
	}{{"Checks", checks}, {"Rules", rules}, {"Drain", drainByHand}, {"Rebalance", rebalance}, {"Burst", burst}} {
		t.Run(part.name, func(t *testing.T) {
			c.t = t
			part.f(t, c)
		})
		c.t = t
	}
}

// soulbox calls the real command line.
func (c *cluster) soulbox(args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), binaries.Path(c.t, "soulbox"), args...)
	cmd.Env = append(os.Environ(), "SOULBOX_ADDR=http://"+c.address, "SOULBOX_API_KEY="+c.key)
	out, err := cmd.CombinedOutput()
	c.t.Logf("$ soulbox %s\n%s", strings.Join(args, " "), out)
	must.NoError(c.t, err)
	return string(out)
}

// meta returns what Nomad's servers know of what an operator has written on a client.
func (c *cluster) meta(m *machine) map[string]string {
	c.t.Helper()
	resp, err := http.Get(c.nomad.Config.Address() + "/v1/node/" + string(m.id))
	must.NoError(c.t, err)
	defer resp.Body.Close()
	var n struct{ Meta map[string]string }
	must.NoError(c.t, json.NewDecoder(resp.Body).Decode(&n))
	return n.Meta
}

func (c *cluster) node(m *machine) api.Node {
	c.t.Helper()
	n, err := c.client.Node(c.t.Context(), m.id)
	must.NoError(c.t, err)
	return n
}

// checks reads Consul's own view of a node.
func checks(t *testing.T, c *cluster) {
	resp, err := http.Get("http://" + strings.TrimPrefix(c.consul.Config.Address(), "http://") + "/v1/health/service/soulbox-node")
	must.NoError(t, err)
	defer resp.Body.Close()
	var entries []struct {
		Service struct{ ID string }
		Checks  []struct{ CheckID, Name, Status, Output, ServiceID string }
	}
	must.NoError(t, json.NewDecoder(resp.Body).Decode(&entries))
	must.Len(t, 2, entries)
	for _, e := range entries {
		lines := map[string]string{}
		for _, check := range e.Checks {
			if check.ServiceID == e.Service.ID {
				t.Logf("%s: %s: %s", check.Name, check.Status, check.Output)
				lines[strings.TrimPrefix(check.CheckID, e.Service.ID+"-")] = check.Output
				must.NotEq(t, "critical", check.Status)
			}
		}
		for _, name := range append(nodeapi.CheckNames(), "ttl") {
			must.NotEq(t, "", lines[name], must.Sprint(name))
		}
	}
	c.soulbox("node", "list")
	must.StrContains(t, c.soulbox("node", "info", "a"), "Check cgroups")
	for _, m := range c.nodes {
		must.SliceContains(t, []string{api.NodeHealthy, api.NodeDegraded}, c.node(m).Status)
	}
}

// placed makes a small sandbox by rules and returns where it is.
func (c *cluster) placed(t *testing.T, p api.Placement) (api.Sandbox, error) {
	t.Helper()
	sb, err := c.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base", CreateOptions: api.CreateOptions{
		CPUMillis: new(int64(100)), MemoryMB: new(int64(64)), Placement: &p,
	}})
	return sb.Sandbox, err
}

func rules(t *testing.T, c *cluster) {
	zone := func(z string) api.PlacementRule { return api.PlacementRule{Attribute: "label.zone", Value: z} }
	var made []api.SandboxID
	for _, tc := range []struct {
		name string
		p    api.Placement
		on   *machine
	}{
		{"a label", api.Placement{Constraints: []api.PlacementRule{zone("b")}}, c.nodes[1]},
		{"a kernel feature and a label", api.Placement{Constraints: []api.PlacementRule{{Attribute: "kernel.idmapped_mounts", Value: "true"}, zone("a")}}, c.nodes[0]},
		{"a node", api.Placement{Constraints: []api.PlacementRule{{Attribute: "node.id", Value: string(c.nodes[1].id)}}}, c.nodes[1]},
		{"rather there", api.Placement{Affinities: []api.PlacementAffinity{{PlacementRule: zone("b"), Weight: 100}}}, c.nodes[1]},
		{"rather not there", api.Placement{Affinities: []api.PlacementAffinity{{PlacementRule: zone("b"), Weight: -100}}}, c.nodes[0]},
	} {
		sb, err := c.placed(t, tc.p)
		must.NoError(t, err, must.Sprint(tc.name))
		must.Eq(t, tc.on.id, sb.Node, must.Sprint(tc.name))
		made = append(made, sb.ID)
	}
	_, err := c.placed(t, api.Placement{Constraints: []api.PlacementRule{zone("c")}})
	must.Eq(t, api.CodeCapacity, api.CodeOf(err))
	must.ErrorContains(t, err, "${meta.zone} = c", must.Sprint("Nomad's own words"))
	t.Log(err)
	for _, id := range made {
		must.NoError(t, c.client.DeleteSandbox(t.Context(), id))
	}
	c.until("nothing to be left", func() error {
		for _, m := range c.nodes {
			if list, err := m.client.List(t.Context()); err != nil || len(list) > 0 {
				return fmt.Errorf("%d on %s: %w", len(list), m.name, err)
			}
		}
		return nil
	})
	spread := map[api.NodeID]int{}
	for range 4 {
		sb, err := c.placed(t, api.Placement{Strategy: api.PlaceSpread})
		must.NoError(t, err)
		spread[sb.Node]++
		made = append(made, sb.ID)
	}
	must.Eq(t, map[api.NodeID]int{c.nodes[0].id: 2, c.nodes[1].id: 2}, spread)
	c.endAll()
}

// drainByHand drains a node from the command line, and has it used again.
func drainByHand(t *testing.T, c *cluster) {
	from, to := c.nodes[0], c.nodes[1]
	c.only(from)
	v := c.create(t)
	c.only(nil)
	visits(t, []*visitor{v}, func() {
		must.StrContains(t, c.soulbox("node", "drain", "-reason", "new kernel", from.name), "draining")
		c.until("the move", func() error {
			if sb := c.get(v.id); sb.Node != to.id || sb.State != "running" {
				return fmt.Errorf("%s is %s on %s", v.id, sb.State, sb.Node)
			}
			return nil
		})
	})
	v.whole(t)
	n := c.node(from)
	must.Eq(t, api.NodeDraining, n.Status)
	must.StrContains(t, n.Reason, "new kernel")
	c.until("Nomad to know", func() error {
		if !strings.Contains(c.run("node", "status", "-short", string(from.id)), "ineligible") {
			return fmt.Errorf("it is eligible")
		}
		return nil
	})
	sb, err := c.placed(t, api.Placement{})
	must.NoError(t, err)
	must.Eq(t, to.id, sb.Node)
	c.soulbox("node", "resume", from.name)
	c.until("the node to be used again", func() error {
		if strings.Contains(c.run("node", "status", "-short", string(from.id)), "ineligible") {
			return fmt.Errorf("it is ineligible")
		}
		return nil
	})
	c.soulbox("node", "list")
	c.endAll()
}

// rebalance has a node with everything give some of it to the other one.
func rebalance(t *testing.T, c *cluster) {
	from, to := c.nodes[0], c.nodes[1]
	c.only(from)
	var all []*visitor
	for range 2 {
		all = append(all, c.create(t))
	}
	c.only(nil)
	c.soulbox("node", "rebalance", "-dry-run")
	visits(t, all, func() {
		out, err := c.client.Rebalance(t.Context(), api.RebalanceRequest{Moves: 1, MinGain: 0.001})
		must.NoError(t, err)
		must.Len(t, 1, out.Moves, must.Sprintf("%+v", out))
		must.True(t, out.Moves[0].Done, must.Sprint(out.Moves[0].Error))
		t.Logf("%+v; the spread was %.2f points", out.Moves[0], out.Spread)
		must.Eq(t, to.id, c.get(out.Moves[0].Sandbox).Node)
	})
	on := map[api.NodeID]int{}
	for _, v := range all {
		v.whole(t)
		on[c.get(v.id).Node]++
	}
	must.Eq(t, map[api.NodeID]int{from.id: 1, to.id: 1}, on)
	c.endAll()
}

// burst has five hundred creates at a pool of twenty. Each sandbox is deleted when it is there, so that they fit.
func burst(t *testing.T, c *cluster) {
	const slots, creates, atOnce = 20, 500, 32
	size := api.PoolSpec{Template: new("base"), CPUMillis: new(int64(100)), MemoryMB: new(int64(64)), Min: new(slots)}
	_, err := c.client.CreatePool(t.Context(), api.NewPool{Name: "burst", PoolSpec: size})
	must.NoError(t, err)
	begin := time.Now()
	c.until("the pool to be full", func() error {
		p, err := c.client.Pool(t.Context(), "burst")
		if err == nil && p.Status.Ready < slots {
			err = fmt.Errorf("%+v", p.Status)
		}
		return err
	})
	t.Logf("%d slots were ready after %s", slots, time.Since(begin).Round(time.Millisecond))

	var mu sync.Mutex
	var hits, misses []time.Duration
	seen := map[api.SandboxID]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	work := make(chan int)
	var wg sync.WaitGroup
	begin = time.Now()
	for range atOnce {
		wg.Go(func() {
			for range work {
				at := time.Now()
				sb, err := c.client.CreateSandbox(ctx, api.CreateRequest{Template: "base", CreateOptions: api.CreateOptions{CPUMillis: size.CPUMillis, MemoryMB: size.MemoryMB}})
				took := time.Since(at)
				if err != nil {
					t.Errorf("create: %v", err)
					continue
				}
				mu.Lock()
				if seen[sb.ID] {
					t.Errorf("%s was given twice", sb.ID)
				}
				seen[sb.ID] = true
				if sb.Warm {
					hits = append(hits, took)
				} else {
					misses = append(misses, took)
				}
				mu.Unlock()
				if err := c.client.DeleteSandbox(ctx, sb.ID); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
	for i := range creates {
		work <- i
	}
	close(work)
	wg.Wait()
	took := time.Since(begin)
	t.Logf("%d creates, %d at once, in %s: %.1f a second; %d found a slot, %d started a sandbox",
		creates, atOnce, took.Round(time.Millisecond), creates/took.Seconds(), len(hits), len(misses))
	histogram(t, "hits", hits)
	histogram(t, "misses", misses)
	must.Eq(t, creates, len(seen))
	must.GreaterEq(t, slots, len(hits))
	p, err := c.client.Pool(t.Context(), "burst")
	must.NoError(t, err)
	must.Eq(t, uint64(len(hits)), p.Status.Hits)
	must.Eq(t, uint64(len(misses)), p.Status.Misses)
	t.Logf("the pool: %+v", p.Status)
	must.NoError(t, c.client.DeletePool(t.Context(), "burst"))
	c.endAll()
}

// histogram prints how long things took, in powers of two.
func histogram(t *testing.T, what string, all []time.Duration) {
	t.Helper()
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	at := func(q float64) time.Duration {
		return all[min(len(all)-1, int(q*float64(len(all))))].Round(100 * time.Microsecond)
	}
	t.Logf("%s: p50 %s, p90 %s, p99 %s, longest %s", what, at(.5), at(.9), at(.99), all[len(all)-1].Round(100*time.Microsecond))
	for low, i := time.Duration(0), 0; i < len(all); {
		high, n := max(2*low, time.Millisecond), 0
		for i < len(all) && all[i] < high {
			i, n = i+1, n+1
		}
		if n > 0 {
			t.Logf("%8s to %-8s %4d %s", low, high, n, strings.Repeat("#", (n*60+len(all)-1)/len(all)))
		}
		low = high
	}
}
