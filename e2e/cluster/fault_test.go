package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
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

var clientKills = flag.Int("clientkills", 6, "how often TestFaults_whatNomadsClientWasStartingBeginsOnce kills the client")

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

// TestFaults_whatNomadsClientWasStartingBeginsOnce kills the client at moments around a start and its own note of that, while the sandbox's owner may have it already, use it,
// and end it or not before the client is back.
func TestFaults_whatNomadsClientWasStartingBeginsOnce(t *testing.T) {
	c := start(t)
	seen := c.follow(t)
	s := c.serve(t)
	create := func() (api.Created, error) { return s.client.CreateSandbox(t.Context(), s.request(time.Hour)) }
	type answer struct {
		sb  api.Created
		err error
	}
	for round := range *clientKills {
		after := time.Duration(round/2) * 50 * time.Millisecond / time.Duration(max(1, *clientKills/2-1)) // a start takes some 30 ms
		ends := round%2 == 1
		answers := make(chan answer, 1)
		go func() {
			sb, err := create()
			answers <- answer{sb, err}
		}()
		var begun api.SandboxID
		s.until(t, "a sandbox to begin", func() error {
			var err error
			begun, err = seen.fresh()
			return err
		})
		time.Sleep(after) // the moment of the kill, not a wait for something
		killed("nomad client")(t, s)
		var first answer
		gone := false // from the service, before the client is back
		select {
		case first = <-answers:
			must.NoError(t, first.err)
			must.Eq(t, begun, first.sb.ID)
			must.NoError(t, s.alive(t.Context(), begun))
			if gone = ends; gone {
				must.NoError(t, s.client.DeleteSandbox(t.Context(), begun))
			}
		case <-time.After(3 * time.Second): // killed before the node had made it: the next client finishes it
		}
		must.NoError(t, s.Nomad().StartClient(t.Context()))
		var next api.Created
		s.until(t, "a create after the client is back", func() error {
			var err error
			next, err = create()
			return err
		})
		if first.sb.ID == "" {
			first = <-answers
			must.NoError(t, first.err)
			must.Eq(t, begun, first.sb.ID)
		}
		if !gone {
			must.NoError(t, s.alive(t.Context(), begun), must.Sprintf("round %d", round))
			must.NoError(t, s.client.DeleteSandbox(t.Context(), begun))
		}
		must.NoError(t, s.client.DeleteSandbox(t.Context(), next.ID))
		for _, id := range []api.SandboxID{begun, next.ID} {
			s.until(t, "Nomad to have collected it", func() error {
				sb, err := s.node.Get(t.Context(), id)
				if api.IsNotFound(err) {
					return nil
				}
				return errors.Join(err, fmt.Errorf("%s is %s", id, sb.State))
			})
			must.Eq(t, 1, seen.ranTimes(id), must.Sprintf("round %d: killed %s after its start began; ended before the client was back: %v", round, after, gone))
		}
		seen.forget()
	}
}
