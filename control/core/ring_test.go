package core

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/keystest"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/state"
)

func leader(t *testing.T) *state.Server {
	t.Helper()
	s, err := state.Open(state.Config{})
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, s.WaitLeader(ctx))
	return s
}

func TestSharedRing_keepsContract(t *testing.T) {
	s := leader(t)
	r := local.NewRing("links", sharedRing{s, "links"})
	_, err := r.Current()
	must.Eq(t, 503, api.StatusOf(err), must.Sprint("before the leader has made it"))
	must.NoError(t, r.Ensure(t.Context()))
	must.NoError(t, r.Ensure(t.Context()))
	keystest.Ring(t, func() keys.Ring { return local.NewRing("links", sharedRing{s, "links"}) })
}

func TestSharedRing_ofTwoRotationsAtOnceEachCountsOrFails(t *testing.T) {
	s := leader(t)
	r := local.NewRing("links", sharedRing{s, "links"})
	must.NoError(t, r.Ensure(t.Context()))
	var mu sync.Mutex
	made := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := r.Rotate(t.Context())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, local.ErrChanged) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must.Positive(t, made)
	k, err := r.Current()
	must.NoError(t, err)
	must.Eq(t, keys.KeyVersion(1+made), k.Version)
	other := local.NewRing("snapshots", sharedRing{s, "snapshots"})
	must.NoError(t, other.Ensure(t.Context()))
	k, err = other.Current()
	must.NoError(t, err)
	must.Eq(t, 1, k.Version, must.Sprint("each ring has its own versions"))
}
