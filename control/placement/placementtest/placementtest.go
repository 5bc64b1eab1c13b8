// Package placementtest checks that a placement.Placer keeps the contract.
package placementtest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Harness is a placer under test and the means to look behind it. Nil functions mean that the place cannot be looked at:
// the checks that need them are left out.
type Harness struct {
	Placer placement.Placer
	// Template is one that the nodes have.
	Template string
	// Made returns how often a sandbox of that id was made, on any node.
	Made func(id api.SandboxID) int
	// Runs reports whether a sandbox of that id runs.
	Runs func(id api.SandboxID) bool
	// EndByItself makes a running sandbox end, as its own command would.
	EndByItself func(t *testing.T, id api.SandboxID)
	// Patience is how long a change may take to be seen; 20 s where 0.
	Patience time.Duration
}

// Run checks one implementation. start makes a fresh placer.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"a placed sandbox runs and is listed until it is stopped", placeListStop},
		{"placing twice makes one", placeTwice},
		{"placing at the same time makes one", placeAtOnce},
		{"stopping an unknown id is no error", stopUnknown},
		{"stopping twice is no error", stopTwice},
		{"an ended sandbox stays listed until it is stopped", listEnded},
		{"after a stop nothing starts any more, even where the place was given up", stopFences},
		{"an unknown template is told", unknownTemplate},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, start(t)) })
	}
}

func (h Harness) request(id api.SandboxID) placement.Request {
	return placement.Request{Tenant: "default", Node: nodeapi.CreateRequest{
		ID: id, Template: h.Template, Owner: nodeapi.Owner{Kind: placement.OwnerKind},
		Limits: nodeapi.Limits{CPUMillis: 100, MemoryBytes: 64 << 20}, Deadline: time.Now().Add(5 * time.Minute),
	}}
}

// place places a new sandbox that is stopped when the test ends.
func (h Harness) place(t *testing.T) api.SandboxID {
	t.Helper()
	id := api.NewSandboxID()
	h.stopAtEnd(t, id)
	must.NoError(t, h.Placer.Place(t.Context(), h.request(id)))
	return id
}

func (h Harness) stopAtEnd(t *testing.T, id api.SandboxID) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := h.Placer.Stop(ctx, id); err != nil {
			t.Errorf("stop %s: %v", id, err)
		}
	})
}

func (h Harness) listed(t *testing.T, id api.SandboxID) (placement.Placed, bool) {
	t.Helper()
	list, err := h.Placer.List(t.Context())
	must.NoError(t, err)
	i := slices.IndexFunc(list, func(p placement.Placed) bool { return p.ID == id })
	if i < 0 {
		return placement.Placed{}, false
	}
	if slices.ContainsFunc(list[i+1:], func(p placement.Placed) bool { return p.ID == id }) {
		t.Fatalf("sandbox %s is listed twice", id)
	}
	return list[i], true
}

func (h Harness) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	patience := h.Patience
	if patience == 0 {
		patience = 20 * time.Second
	}
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen within %s: %s", patience, what)
		}
	}
}

func placeListStop(t *testing.T, h Harness) {
	id := h.place(t)
	if h.Runs != nil {
		h.until(t, "it runs", func() bool { return h.Runs(id) })
	}
	h.until(t, "it is listed as active", func() bool {
		p, ok := h.listed(t, id)
		return ok && p.State == placement.Active
	})
	p, _ := h.listed(t, id)
	must.NotEq(t, "", p.Ref)
	must.NoError(t, h.Placer.Stop(t.Context(), id))
	h.until(t, "it is not listed", func() bool { _, ok := h.listed(t, id); return !ok })
	if h.Runs != nil {
		h.until(t, "it does not run", func() bool { return !h.Runs(id) })
	}
}

func placeTwice(t *testing.T, h Harness) {
	id := h.place(t)
	must.NoError(t, h.Placer.Place(t.Context(), h.request(id)))
	h.one(t, id)
}

func placeAtOnce(t *testing.T, h Harness) {
	id := api.NewSandboxID()
	h.stopAtEnd(t, id)
	var calls errgroup.Group
	for range 4 {
		calls.Go(func() error { return h.Placer.Place(t.Context(), h.request(id)) })
	}
	must.NoError(t, calls.Wait())
	h.one(t, id)
}

// one checks that there is one placement, and one sandbox.
func (h Harness) one(t *testing.T, id api.SandboxID) {
	t.Helper()
	h.until(t, "it is listed as active", func() bool {
		p, ok := h.listed(t, id)
		return ok && p.State == placement.Active
	})
	if h.Runs != nil {
		h.until(t, "it runs", func() bool { return h.Runs(id) })
	}
	if h.Made != nil {
		must.Eq(t, 1, h.Made(id))
	}
}

func stopUnknown(t *testing.T, h Harness) {
	must.NoError(t, h.Placer.Stop(t.Context(), api.NewSandboxID()))
}

func stopTwice(t *testing.T, h Harness) {
	id := h.place(t)
	must.NoError(t, h.Placer.Stop(t.Context(), id))
	must.NoError(t, h.Placer.Stop(t.Context(), id))
}

func listEnded(t *testing.T, h Harness) {
	if h.EndByItself == nil || h.Runs == nil {
		t.Skip("this harness cannot end a sandbox")
	}
	id := h.place(t)
	h.until(t, "it runs", func() bool { return h.Runs(id) })
	h.EndByItself(t, id)
	h.until(t, "it is listed as ended", func() bool {
		p, ok := h.listed(t, id)
		return ok && p.State == placement.Ended
	})
	must.NoError(t, h.Placer.Stop(t.Context(), id))
	h.until(t, "it is not listed", func() bool { _, ok := h.listed(t, id); return !ok })
}

func stopFences(t *testing.T, h Harness) {
	for i := range 20 {
		id := api.NewSandboxID()
		h.stopAtEnd(t, id)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*100*time.Microsecond)
		_ = h.Placer.Place(ctx, h.request(id)) // may or may not have been in time
		cancel()
		must.NoError(t, h.Placer.Stop(t.Context(), id))
		h.until(t, "it is not listed", func() bool { _, ok := h.listed(t, id); return !ok })
		if h.Runs != nil {
			h.until(t, "it does not run", func() bool { return !h.Runs(id) })
		}
	}
}

func unknownTemplate(t *testing.T, h Harness) {
	id := api.NewSandboxID()
	h.stopAtEnd(t, id)
	req := h.request(id)
	req.Node.Template = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	err := h.Placer.Place(t.Context(), req)
	if w, ok := h.Placer.(placement.Watcher); ok && err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err = w.Watch(ctx, id)
	}
	must.Error(t, err)
	must.Eq(t, api.CodeUnknownTemplate, api.AsError(err).ErrorCode, must.Sprint(err))
}
