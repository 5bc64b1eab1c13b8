package state

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// A sandbox that leaves its node is waited for on every server: until that server has heard of it, and what it had let through before has ended.
func TestQuiet_waitsForTheRequestsOfOtherServers(t *testing.T) {
	ca := newAuthority(t)
	asked, ended := make(chan api.SandboxID, 3), make(chan struct{})
	quiet := func(ctx context.Context, id api.SandboxID) {
		asked <- id
		select {
		case <-ended:
		case <-ctx.Done():
		}
	}
	a := ca.member(t, "a", t.TempDir(), nil, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must.NoError(t, a.WaitLeader(ctx))
	b := ca.member(t, "b", t.TempDir(), []string{a.RaftAddr()}, func(c *Config) { c.Quiet = quiet })
	must.NoError(t, b.WaitLeader(ctx))
	a.healthy(t, "a", "b")
	mustApply(t, a.Server, &SandboxCreate{Sandbox: starting(1)})
	mustApply(t, a.Server, &SandboxRunning{ID: id(1), Node: "n", StartedAt: at(1)})
	until(t, "b to know of it", func() bool {
		sb, err := b.Sandbox(id(1))
		return err == nil && sb.State == Running
	})

	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Quiet(ctx, id(1))
	}()
	select {
	case <-asked:
		t.Error("b was not told yet that it leaves: it may let a request through")
	case <-done:
		t.Error("nobody waited for b")
	case <-time.After(100 * time.Millisecond):
	}
	mustApply(t, a.Server, &SandboxMove{ID: id(1), Moving: true})
	must.Eq(t, id(1), <-asked)
	select {
	case <-done:
		t.Error("a request is under way at b")
	case <-time.After(100 * time.Millisecond):
	}
	close(ended)
	<-done

	within, enough := context.WithTimeout(ctx, time.Second)
	defer enough()
	must.NoError(t, b.Close())
	a.Quiet(within, id(1)) // one that is gone is not waited for longer
}
