package cluster

import (
	"context"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/health"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TestFaults_runningSandboxesGoOn kills one agent after the other, and the Nomad client, while a sandbox runs.
func TestFaults_runningSandboxesGoOn(t *testing.T) {
	c := start(t)
	seen := c.follow(t)
	req := request(small)
	must.NoError(t, c.placer.Place(t.Context(), req))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := seen.waitRunning(ctx, req.Node.ID)
	must.NoError(t, err)
	pid := func() int {
		sb, err := c.node.Get(t.Context(), req.Node.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateRunning, sb.State)
		return sb.PID
	}
	first := pid()
	processes := c.Processes()
	kill := func(name string) {
		t.Helper()
		p := processes[name]
		must.NoError(t, p.Signal(syscall.SIGKILL))
		<-p.Done()
		must.Error(t, <-c.Failed())
		must.Eq(t, first, pid(), must.Sprint("after the end of "+name))
	}

	kill("consul")
	n := c.entry(t, func(n health.Node) bool { return n.Status == health.Unknown })
	must.Eq(t, c.NodeID(), n.ID, must.Sprint("the node is still known"))
	more := request(small)
	must.NoError(t, c.placer.Place(t.Context(), more), must.Sprint("creates go on without Consul"))
	_, err = seen.waitRunning(ctx, more.Node.ID)
	must.NoError(t, err)

	kill("vault")
	_, err = c.Issuer().Issue(t.Context(), keys.Request{Identity: keys.Node("n")})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))

	kill("nomad client")
	must.NoError(t, c.Nomad().StartClient(t.Context()))
	must.Eq(t, first, pid())
	must.Eq(t, 1, seen.madeTimes(req.Node.ID))
	last := request(small)
	must.NoError(t, c.placer.Place(t.Context(), last))
	_, err = seen.waitRunning(ctx, last.Node.ID)
	must.NoError(t, err)

	kill("nomad server")
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(c.placer.Place(t.Context(), request(small))))
	must.NoError(t, c.Nomad().StartServer(t.Context()))
	must.Eq(t, first, pid())
	agenttest.Eventually(t, 60*time.Second, func() error { return c.placer.Stop(t.Context(), req.Node.ID) })
	agenttest.Eventually(t, 30*time.Second, func() error {
		sb, err := c.node.Get(t.Context(), req.Node.ID)
		if api.IsNotFound(err) || err == nil && sb.State == nodeapi.StateStopped {
			return nil
		}
		return api.Errorf(http.StatusConflict, api.CodeConflict, "it is %s: %v", sb.State, err)
	})
}
