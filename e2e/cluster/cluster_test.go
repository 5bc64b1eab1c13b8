package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/placement/placementtest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func request(limits nodeapi.Limits) placement.Request {
	return placement.Request{Tenant: "default", Node: nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: template, Limits: limits, Owner: nodeapi.Owner{Kind: placement.OwnerKind},
		Deadline: time.Now().Add(10 * time.Minute),
	}}
}

var small = nodeapi.Limits{CPUMillis: 50, MemoryBytes: 32 << 20}

func TestPlacer_keepsContract(t *testing.T) {
	c := start(t)
	seen := c.follow(t)
	placementtest.Run(t, func(t *testing.T) placementtest.Harness {
		return placementtest.Harness{
			Placer: c.placer, Template: template, Made: seen.madeTimes,
			Runs: func(id api.SandboxID) bool {
				sb, err := c.node.Get(t.Context(), id)
				return err == nil && sb.State == nodeapi.StateRunning
			},
			EndByItself: func(t *testing.T, id api.SandboxID) {
				_, err := c.node.Stop(t.Context(), id, nodeapi.StopRequest{})
				must.NoError(t, err)
			},
		}
	})
}

func TestCreate_reachesTheNodeAndIsGoneAfterStop(t *testing.T) {
	c := start(t)
	seen := c.follow(t)
	for range 3 {
		life := c.live(t, seen, small)
		must.Eq(t, placement.OwnerKind, life.sandbox.Owner.Kind)
		must.NotEq(t, "", life.sandbox.Owner.AllocID)
		must.SliceNotEmpty(t, life.sandbox.Steps)
	}
	list, err := c.placer.List(t.Context())
	must.NoError(t, err)
	must.SliceEmpty(t, list)
}

func TestCreate_refusalsOfTheClusterReachTheCaller(t *testing.T) {
	c := start(t)
	tests := []struct {
		name   string
		change func(*placement.Request)
		code   string
		want   string
	}{
		{"no node is big enough", func(r *placement.Request) { r.Node.Limits.MemoryBytes = 1 << 50 }, api.CodeCapacity, "memory is exhausted"},
		{"unknown template", func(r *placement.Request) { r.Node.Template = "nothing" }, api.CodeUnknownTemplate, "nothing"},
		{"names with odd bytes", func(r *placement.Request) { r.Node.Hostname = "${attr.unique.hostname}\n" }, api.CodeInvalid, "hostname"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			req := request(small)
			tc.change(&req)
			begin := time.Now()
			must.NoError(t, c.placer.Place(t.Context(), req))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := c.placer.Watch(ctx, req.Node.ID)
			t.Logf("known after %s: %v", time.Since(begin).Round(time.Millisecond), err)
			must.Eq(t, tc.code, api.AsError(err).ErrorCode)
			must.StrContains(t, err.Error(), tc.want)
			must.NoError(t, c.placer.Stop(t.Context(), req.Node.ID))
		})
	}
}

func TestStop_leavesNoProcessPortOrMount(t *testing.T) {
	c := start(t)
	for range 3 {
		req := request(small)
		must.NoError(t, c.placer.Place(t.Context(), req))
	}
	agenttest.Eventually(t, 20*time.Second, func() error {
		list, err := c.node.List(t.Context())
		if err == nil && len(list) < 3 {
			err = fmt.Errorf("%d sandboxes are there", len(list))
		}
		return err
	})
	// One that Nomad knows nothing of.
	_, err := c.node.Create(t.Context(), nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: template, Limits: small, Owner: nodeapi.Owner{Kind: "test"},
	})
	must.NoError(t, err)
	urls := c.URLs()
	must.Len(t, 3, urls)

	begin := time.Now()
	must.NoError(t, c.Stop(context.Background()))
	c.Cluster = nil
	t.Logf("all ended after %s", time.Since(begin).Round(time.Millisecond))
	for _, u := range urls {
		must.True(t, closed(u.Address), must.Sprint(u.Name))
	}
	must.SliceEmpty(t, processesOf(t, c.dir))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	must.StrNotContains(t, string(mounts), c.dir)
}

// processesOf lists the processes that mention dir in their arguments.
func processesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must.NoError(t, err)
	var out []string
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			out = append(out, f+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}
