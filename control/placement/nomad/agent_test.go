package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// cluster is a real Nomad whose tasks are shell scripts that stand for sandboxes. It is shared by the tests of one
// function; each placer has a prefix of its own.
type cluster struct {
	nomad *agent.Nomad
	out   string // tasks write here
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	n := agenttest.Nomad(t, agent.NomadConfig{
		MemoryMB: 4096,
		Plugins:  []agent.NomadPlugin{{Name: "raw_exec", Config: map[string]any{"enabled": true}}},
	})
	return &cluster{nomad: n, out: t.TempDir()}
}

// placer returns a placer whose sandboxes run script.
func (c *cluster) placer(t *testing.T, script string) *Placer {
	t.Helper()
	p, err := New(Config{
		Address: c.nomad.Config.Address(), Driver: "raw_exec", Prefix: strings.ToLower(t.Name()[strings.LastIndex(t.Name(), "/")+1:]),
		taskConfig: map[string]any{"command": "/bin/sh", "args": []string{"-c", script}},
	})
	must.NoError(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		placed, err := p.List(ctx)
		must.NoError(t, err)
		for _, x := range placed {
			must.NoError(t, p.Stop(ctx, x.ID))
		}
		p.Close()
	})
	return p
}

func request(memoryMB int64) placement.Request {
	return placement.Request{Tenant: "default", Node: nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: "base", Limits: nodeapi.Limits{CPUMillis: 50, MemoryBytes: memoryMB * mib},
		Owner: nodeapi.Owner{Kind: "control"},
	}}
}

func find(t *testing.T, p *Placer, id api.SandboxID) *placement.Placed {
	t.Helper()
	list, err := p.List(t.Context())
	must.NoError(t, err)
	for i := range list {
		if list[i].ID == id {
			return &list[i]
		}
	}
	return nil
}

func waitState(t *testing.T, p *Placer, id api.SandboxID, want placement.State) placement.Placed {
	t.Helper()
	var last *placement.Placed
	agenttest.Eventually(t, 20*time.Second, func() error {
		if last = find(t, p, id); last == nil || last.State != want {
			return fmt.Errorf("placement is %+v, want %s", last, want)
		}
		return nil
	})
	return *last
}

const sleepScript = "exec sleep 600"

func TestPlacer(t *testing.T) {
	c := newCluster(t)

	t.Run("Dispatch", func(t *testing.T) {
		p := c.placer(t, fmt.Sprintf(`cat "$NOMAD_TASK_DIR/%s" > "%s/$NOMAD_META_sandbox_id" && exec sleep 600`, PayloadFile, c.out))
		req := request(32)
		req.Node.Env = map[string]string{"A": "${attr.unique.hostname} \"}{%\n"}
		begin := time.Now()
		must.NoError(t, p.Place(t.Context(), req))
		t.Logf("first dispatch (with the registration of its parent) took %s", time.Since(begin))
		placed := waitState(t, p, req.Node.ID, placement.Active)
		must.Eq(t, api.NodeID(c.nomad.Config.NodeID), placed.Node)

		want, err := json.Marshal(req.Node)
		must.NoError(t, err)
		agenttest.Eventually(t, 5*time.Second, func() error {
			got, err := os.ReadFile(filepath.Join(c.out, string(req.Node.ID)))
			if err == nil && string(got) != string(want) {
				err = fmt.Errorf("payload is %s, want %s", got, want)
			}
			return err
		})

		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		must.Nil(t, find(t, p, req.Node.ID))
		must.NoError(t, p.Stop(t.Context(), req.Node.ID), must.Sprint("a second stop"))
		agenttest.Eventually(t, 10*time.Second, func() error { return c.nothingRuns(p.cfg.Prefix) })
	})

	t.Run("OwnNodes", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(32)
		req.Tenant, req.Dedicated = "acme", true
		err := p.Place(t.Context(), req)
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
		must.ErrorContains(t, err, "tenant acme has nodes of its own (isolation.compute), and Nomad has no node pool soulbox-acme")
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		_, err = p.client.NodePools().Register(&nomadapi.NodePool{Name: "soulbox-acme"}, nil)
		must.NoError(t, err)
		must.NoError(t, p.Place(t.Context(), req))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err = p.Watch(ctx, req.Node.ID)
		must.Eq(t, api.CodeCapacity, api.CodeOf(err), must.Sprint(err))
		must.ErrorContains(t, err, "there is none in its datacenters and node pool", must.Sprint("a node of all tenants is not taken"))
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		shared := request(32)
		shared.Tenant = "acme"
		must.NoError(t, p.Place(t.Context(), shared))
		waitState(t, p, shared.Node.ID, placement.Active)
	})

	t.Run("Rules", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		place := func(r api.Placement) (api.SandboxID, error) {
			t.Helper()
			rules, err := placement.ParseRules(&r)
			must.NoError(t, err)
			req := request(32)
			req.Rules = rules
			must.NoError(t, p.Place(t.Context(), req))
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			return req.Node.ID, p.Watch(ctx, req.Node.ID)
		}
		for _, r := range []api.PlacementRule{
			{Attribute: "node.datacenter", Value: "dc1"},
			{Attribute: "attr.kernel.name", Value: "linux"},
			{Attribute: "attr.kernel.version", Operator: "semver", Value: ">= 4.0"},
			{Attribute: "attr.cpu.numcores", Operator: ">=", Value: "1"},
			{Attribute: "label.gpu", Operator: "is_not_set"},
		} {
			id, err := place(api.Placement{
				Constraints: []api.PlacementRule{r}, Priority: 40,
				Affinities: []api.PlacementAffinity{{PlacementRule: api.PlacementRule{Attribute: "label.zone", Value: "a"}, Weight: -20}},
			})
			must.ErrorIs(t, err, context.DeadlineExceeded, must.Sprintf("%+v: it failed to be placed: %v", r, err))
			waitState(t, p, id, placement.Active)
		}
		for _, r := range []api.PlacementRule{
			{Attribute: "node.datacenter", Value: "dc2"},
			{Attribute: "label.disk", Value: "ssd"},
			{Attribute: "kernel.idmapped_mounts", Value: "true"}, // this client's driver is another
			{Attribute: "attr.kernel.version", Operator: "semver", Value: ">= 99"},
		} {
			_, err := place(api.Placement{Constraints: []api.PlacementRule{r}})
			must.Eq(t, api.CodeCapacity, api.CodeOf(err), must.Sprintf("%+v: %v", r, err))
			must.ErrorContains(t, err, r.Value, must.Sprint("it is Nomad's own word"))
			t.Log(err)
		}
		high := request(32)
		high.Rules, _ = placement.ParseRules(&api.Placement{Priority: 51})
		must.ErrorContains(t, p.Place(t.Context(), high), "at most 50 here")
	})

	t.Run("Fence", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		nodes, _, err := p.client.Nodes().List(nil)
		must.NoError(t, err)
		must.Len(t, 1, nodes)
		node := api.NodeID(nodes[0].ID)
		must.NoError(t, p.Fence(t.Context(), node, true))
		must.NoError(t, p.Fence(t.Context(), node, true), must.Sprint("again"))
		req := request(32)
		must.NoError(t, p.Place(t.Context(), req))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		must.Eq(t, api.CodeCapacity, api.CodeOf(p.Watch(ctx, req.Node.ID)))
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		must.NoError(t, p.Fence(t.Context(), node, false))
		req = request(32)
		must.NoError(t, p.Place(t.Context(), req))
		waitState(t, p, req.Node.ID, placement.Active)
		must.NoError(t, p.Fence(t.Context(), "00000000-0000-0000-0000-000000000000", true), must.Sprint("a node that Nomad does not know"))
	})

	t.Run("Twice", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(16)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { must.NoError(t, p.Place(t.Context(), req)) })
		}
		wg.Wait()
		// Another control service, as after a restart or a change of leaders.
		for range 3 {
			other, err := New(p.cfg)
			must.NoError(t, err)
			wg.Go(func() {
				defer other.Close()
				must.NoError(t, other.Place(t.Context(), req))
			})
		}
		wg.Wait()
		list, err := p.List(t.Context())
		must.NoError(t, err)
		must.Len(t, 1, list)

		other, err := New(p.cfg)
		must.NoError(t, err)
		defer other.Close()
		must.NoError(t, other.Stop(t.Context(), req.Node.ID), must.Sprint("by a service that did not place it"))
		must.Nil(t, find(t, p, req.Node.ID))
	})

	t.Run("EndedCaller", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(16)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		must.ErrorIs(t, p.Place(ctx, req), context.Canceled)
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		must.Nil(t, find(t, p, req.Node.ID))
	})

	t.Run("PurgedParent", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		must.NoError(t, p.Place(t.Context(), request(16)))
		_, _, err := p.client.Jobs().Deregister(classOf(request(16).Node.Limits, "").jobID(p.cfg.Prefix), true, nil)
		must.NoError(t, err)
		must.NoError(t, p.Place(t.Context(), request(16)))
	})

	t.Run("NoRoom", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(1 << 20)
		begin := time.Now()
		must.NoError(t, p.Place(t.Context(), req))
		err := p.Watch(t.Context(), req.Node.ID)
		t.Logf("refused after %s: %v", time.Since(begin), err)
		must.Eq(t, api.CodeCapacity, api.AsError(err).ErrorCode)
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
		must.StrContains(t, err.Error(), "memory is exhausted on 1")
		must.Less(t, 2*time.Second, time.Since(begin))
		must.Eq(t, placement.Pending, find(t, p, req.Node.ID).State)
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		must.Nil(t, find(t, p, req.Node.ID))
	})

	t.Run("NoDriver", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		p.cfg.Driver = DriverName
		req := request(16)
		must.NoError(t, p.Place(t.Context(), req))
		err := p.Watch(t.Context(), req.Node.ID)
		must.Eq(t, api.CodeCapacity, api.AsError(err).ErrorCode)
		must.StrContains(t, err.Error(), "missing drivers")
	})

	t.Run("FailedStart", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		p.cfg.taskConfig = map[string]any{"command": "/nonexistent (command_not_found)"}
		req := request(16)
		begin := time.Now()
		must.NoError(t, p.Place(t.Context(), req))
		err := p.Watch(t.Context(), req.Node.ID)
		t.Logf("known after %s: %v", time.Since(begin), err)
		must.Error(t, err)
		must.Eq(t, placement.Ended, waitState(t, p, req.Node.ID, placement.Ended).State)
		c.oneAllocation(t, p, req.Node.ID)
	})

	t.Run("WatchOfRunning", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(16)
		must.NoError(t, p.Place(t.Context(), req))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		must.ErrorIs(t, p.Watch(ctx, req.Node.ID), context.DeadlineExceeded)
		other, err := New(p.cfg)
		must.NoError(t, err)
		defer other.Close()
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.ErrorIs(t, other.Watch(ctx, req.Node.ID), context.DeadlineExceeded)
		must.Eq(t, http.StatusNotFound, api.StatusOf(p.Watch(t.Context(), api.NewSandboxID())))
	})

	// Nomad neither restarts nor replaces what ended, whoever ended it.
	for name, end := range map[string]func(t *testing.T, p *Placer, alloc *nomadapi.Allocation){
		"Exited": nil, // its script does
		"Killed": func(t *testing.T, _ *Placer, alloc *nomadapi.Allocation) {
			pid := 0
			agenttest.Eventually(t, 5*time.Second, func() error {
				data, err := os.ReadFile(filepath.Join(c.out, alloc.ID))
				if err != nil {
					return err
				}
				_, err = fmt.Sscan(string(data), &pid)
				return err
			})
			must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		},
		"JobStop": func(t *testing.T, p *Placer, alloc *nomadapi.Allocation) {
			job, _, err := p.client.Jobs().Info(alloc.JobID, nil)
			must.NoError(t, err)
			_, _, err = p.client.Jobs().Deregister(*job.ID, false, nil)
			must.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			script := fmt.Sprintf(`echo $$ > "%s/$NOMAD_ALLOC_ID"; exec sleep 600`, c.out)
			if end == nil {
				script = "exit 7"
			}
			p := c.placer(t, script)
			req := request(16)
			must.NoError(t, p.Place(t.Context(), req))
			if end != nil {
				placed := waitState(t, p, req.Node.ID, placement.Active)
				alloc, _, err := p.client.Allocations().Info(placed.Ref, nil)
				must.NoError(t, err)
				end(t, p, alloc)
			}
			placed := waitState(t, p, req.Node.ID, placement.Ended)
			t.Logf("reason: %s", placed.Reason)
			c.settled(t)
			must.Eq(t, placement.Ended, find(t, p, req.Node.ID).State)
			c.oneAllocation(t, p, req.Node.ID)
			must.NoError(t, p.Place(t.Context(), req), must.Sprint("placing again what ended"))
			c.oneAllocation(t, p, req.Node.ID)
		})
	}

	// An operator's `nomad alloc stop` asks for another allocation; that one is not the sandbox.
	t.Run("AllocStop", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		req := request(16)
		must.NoError(t, p.Place(t.Context(), req))
		placed := waitState(t, p, req.Node.ID, placement.Active)
		alloc, _, err := p.client.Allocations().Info(placed.Ref, nil)
		must.NoError(t, err)
		_, err = p.client.Allocations().Stop(alloc, nil)
		must.NoError(t, err)
		must.Eq(t, wasReplaced, waitState(t, p, req.Node.ID, placement.Ended).Reason)
		must.ErrorContains(t, p.Watch(t.Context(), req.Node.ID), wasReplaced)
		must.NoError(t, p.Stop(t.Context(), req.Node.ID))
		agenttest.Eventually(t, 10*time.Second, func() error { return c.nothingRuns(p.cfg.Prefix) })
	})

	t.Run("ManyListed", func(t *testing.T) {
		p := c.placer(t, sleepScript)
		p.cfg.Driver = DriverName // which is not there: they wait
		want := map[api.SandboxID]bool{}
		for range pageSize + 20 {
			req := request(16)
			must.NoError(t, p.Place(t.Context(), req))
			want[req.Node.ID] = true
		}
		begin := time.Now()
		list, err := p.List(t.Context())
		must.NoError(t, err)
		t.Logf("list of %d took %s", len(list), time.Since(begin))
		must.Len(t, len(want), list)
		for _, x := range list {
			must.True(t, want[x.ID])
			must.Eq(t, placement.Pending, x.State)
		}
		begin = time.Now()
		for id := range want {
			must.NoError(t, p.Stop(t.Context(), id))
		}
		t.Logf("stops took %s each", time.Since(begin)/time.Duration(len(want)))
	})
}

func TestPlacer_survivesTheServerAndTheClient(t *testing.T) {
	c := newCluster(t)
	p := c.placer(t, sleepScript)
	req := request(16)
	must.NoError(t, p.Place(t.Context(), req))
	before := waitState(t, p, req.Node.ID, placement.Active)

	must.NoError(t, c.nomad.Server.Signal(syscall.SIGKILL))
	<-c.nomad.Server.Done()
	_, err := p.List(t.Context())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(p.Stop(t.Context(), req.Node.ID)))
	must.NoError(t, c.nomad.StartServer(t.Context()))

	must.NoError(t, c.nomad.Client.Signal(syscall.SIGKILL))
	<-c.nomad.Client.Done()
	must.NoError(t, c.nomad.StartClient(t.Context()))

	after := waitState(t, p, req.Node.ID, placement.Active)
	must.Eq(t, before.Ref, after.Ref)
	must.Eq(t, before.Node, after.Node)
	c.oneAllocation(t, p, req.Node.ID)
	must.NoError(t, p.Stop(t.Context(), req.Node.ID))
	agenttest.Eventually(t, 10*time.Second, func() error { return c.nothingRuns(p.cfg.Prefix) })
}

// nothingRuns returns an error while an allocation under the prefix runs, or will. One that is purged while it waits for the
// one that it replaces stays pending on the client for ever.
func (c *cluster) nothingRuns(prefix string) error {
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: c.nomad.Config.Address()})
	if err != nil {
		return err
	}
	defer client.Close()
	allocs, _, err := client.Allocations().List(nil)
	if err != nil {
		return err
	}
	for _, a := range allocs {
		if strings.HasPrefix(a.JobID, prefix+"-") &&
			(a.ClientStatus == nomadapi.AllocClientStatusRunning ||
				a.ClientStatus == nomadapi.AllocClientStatusPending && a.DesiredStatus == nomadapi.AllocDesiredStatusRun) {
			return errors.New("allocation " + a.ID + " is " + a.ClientStatus)
		}
	}
	return nil
}

// settled waits until Nomad's schedulers have nothing to do.
func (c *cluster) settled(t *testing.T) {
	t.Helper()
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: c.nomad.Config.Address()})
	must.NoError(t, err)
	defer client.Close()
	agenttest.Eventually(t, 10*time.Second, func() error {
		evals, _, err := client.Evaluations().List(nil)
		if err != nil {
			return err
		}
		for _, e := range evals {
			if e.Status == nomadapi.EvalStatusPending {
				return fmt.Errorf("evaluation %s of %s is pending until %s", e.ID, e.JobID, e.WaitUntil)
			}
		}
		return nil
	})
}

func (c *cluster) oneAllocation(t *testing.T, p *Placer, id api.SandboxID) {
	t.Helper()
	jobs, err := p.jobsOf(t.Context(), id, nil)
	must.NoError(t, err)
	must.Len(t, 1, jobs)
	allocs, _, err := p.client.Jobs().Allocations(jobs[0], true, nil)
	must.NoError(t, err)
	must.Len(t, 1, allocs)
}
