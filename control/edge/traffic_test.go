package edge

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func TestTraffic_awaitsTheLastRequest(t *testing.T) {
	var tr Traffic
	id := api.NewSandboxID()
	tr.Await(t.Context(), id) // none is under way
	must.True(t, tr.enter(id, 2))
	must.True(t, tr.enter(id, 2))
	must.False(t, tr.enter(id, 2))
	must.True(t, tr.enter(api.NewSandboxID(), 2), must.Sprint("each sandbox has its own"))
	done := make(chan struct{})
	go func() { defer close(done); tr.Await(t.Context(), id) }()
	tr.leave(id)
	select {
	case <-done:
		t.Fatal("one is under way")
	case <-time.After(20 * time.Millisecond):
	}
	tr.leave(id)
	<-done
	must.True(t, tr.enter(id, 2))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr.Await(ctx, id) // gives up
	tr.leave(id)
}
