// Package healthtest checks that a health.Directory keeps the contract.
package healthtest

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/health"
)

// Harness is a directory under test and the means to change what it sees.
type Harness struct {
	Directory health.Directory
	// Add makes a node appear at address, Remove makes it disappear.
	Add    func(t *testing.T, address string)
	Remove func(t *testing.T, address string)
}

// patience is how long a change may take to be seen.
const patience = 20 * time.Second

// Run checks one implementation. start makes a fresh directory without nodes.
func Run(t *testing.T, start func(t *testing.T) Harness) {
	t.Run("the first view comes at once", func(t *testing.T) {
		h := start(t)
		v := next(t, h, 0)
		must.Positive(t, v.Index)
		must.SliceEmpty(t, v.Nodes)
	})
	t.Run("equal index means equal view", func(t *testing.T) {
		h := start(t)
		h.Add(t, "https://127.0.0.1:17302")
		a := until(t, h, 1)
		b := next(t, h, 0)
		if a.Index == b.Index && !cmp.Equal(a, b) {
			t.Fatalf("two views of index %d differ: %s", a.Index, cmp.Diff(a, b))
		}
	})
	t.Run("a change wakes a waiter and is ordered by address", func(t *testing.T) {
		h := start(t)
		v := next(t, h, 0)
		got := make(chan health.View, 1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		go func() {
			w, err := h.Directory.Nodes(ctx, v.Index)
			if err == nil {
				got <- w
			}
			close(got)
		}()
		h.Add(t, "https://127.0.0.1:17303")
		w, ok := <-got
		must.True(t, ok, must.Sprint("the waiter got no view"))
		must.Greater(t, v.Index, w.Index)
		h.Add(t, "https://127.0.0.1:17302")
		w = until(t, h, 2)
		must.Eq(t, "https://127.0.0.1:17302", w.Nodes[0].Address)
		must.Eq(t, "https://127.0.0.1:17303", w.Nodes[1].Address)
		h.Remove(t, "https://127.0.0.1:17302")
		w = until(t, h, 1)
		must.Eq(t, "https://127.0.0.1:17303", w.Nodes[0].Address)
	})
	t.Run("a waiter ends with its context", func(t *testing.T) {
		h := start(t)
		v := next(t, h, 0)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		for {
			w, err := h.Directory.Nodes(ctx, v.Index)
			if err != nil {
				must.ErrorIs(t, err, context.DeadlineExceeded)
				return
			}
			must.Greater(t, v.Index, w.Index)
			v = w
		}
	})
}

func next(t *testing.T, h Harness, after uint64) health.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	v, err := h.Directory.Nodes(ctx, after)
	must.NoError(t, err)
	return v
}

// until returns the first view with n nodes.
func until(t *testing.T, h Harness, n int) health.View {
	t.Helper()
	v := next(t, h, 0)
	for len(v.Nodes) != n {
		v = next(t, h, v.Index)
	}
	return v
}
