package chunk

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/shoenig/test/must"
)

func TestRecent_readsOnceForAllWhoAsk(t *testing.T) {
	var r recent
	defer r.close()
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			pages, err := r.get(t.Context(), recentKey{id: "a"}, func() ([]byte, error) {
				reads.Add(1)
				return []byte("pages"), nil
			})
			if err != nil || string(pages) != "pages" {
				t.Errorf("%q, %v", pages, err)
			}
		})
	}
	wg.Wait()
	must.Eq(t, 1, reads.Load())
	// Another content of that name is another pack, and so is another tenant's.
	for _, key := range []recentKey{{id: "a", hash: "b"}, {id: "a", tenant: "t"}, {id: "a", version: 1}} {
		pages, err := r.get(t.Context(), key, func() ([]byte, error) { return []byte("others"), nil })
		must.NoError(t, err)
		must.Eq(t, "others", string(pages))
	}
}

// Who was given up takes nobody along, and what could not be read is read again.
func TestRecent_keepsNoFailure(t *testing.T) {
	var r recent
	defer r.close()
	failed, begun, end := errors.New("failed"), make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := r.get(t.Context(), recentKey{id: "a"}, func() ([]byte, error) {
			close(begun)
			<-end
			return nil, failed
		})
		if !errors.Is(err, failed) {
			t.Errorf("%v", err)
		}
	})
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := r.get(ctx, recentKey{id: "a"}, nil)
	must.ErrorIs(t, err, context.Canceled)
	wg.Go(func() {
		pages, err := r.get(t.Context(), recentKey{id: "a"}, func() ([]byte, error) { return []byte("pages"), nil })
		if err != nil || string(pages) != "pages" {
			t.Errorf("%q, %v", pages, err)
		}
	})
	close(end)
	wg.Wait()
}

func TestRecent_isBounded(t *testing.T) {
	var r recent
	const each = recentBytes / 4
	for i := range 10 {
		_, err := r.get(t.Context(), recentKey{version: i}, func() ([]byte, error) { return make([]byte, each), nil })
		must.NoError(t, err)
		must.LessEq(t, recentBytes, r.bytes)
	}
	must.MapLen(t, 4, r.packs)
	must.MapContainsKey(t, r.packs, recentKey{version: 9})
	_, err := r.get(t.Context(), recentKey{id: "large"}, func() ([]byte, error) { return make([]byte, recentBytes+1), nil })
	must.NoError(t, err)
	must.Zero(t, r.bytes)
	must.MapEmpty(t, r.packs)
	r.close()
}

// Whoever has a manifest may change it; what is stored under its name now is what counts.
func TestRecent_knowsManifestsByTheirBytes(t *testing.T) {
	var r recent
	defer r.close()
	m := &Manifest{ID: "a", Entries: make([]Entry, 2)}
	r.remember("a", []byte("stored"), m)
	m.Entries = nil
	got := r.manifest("a", []byte("stored"))
	must.NotNil(t, got)
	must.Len(t, 2, got.Entries)
	got.Entries = nil
	must.Len(t, 2, r.manifest("a", []byte("stored")).Entries)
	must.Nil(t, r.manifest("a", []byte("storeD")))
	must.Nil(t, r.manifest("b", []byte("stored")))
	for i := range recentManifests {
		r.remember(string(rune('b'+i)), nil, m)
	}
	must.Nil(t, r.manifest("a", []byte("stored")))
	must.MapLen(t, recentManifests, r.manifests)
	r.remember("large", make([]byte, recentManifest+1), m)
	must.MapNotContainsKey(t, r.manifests, "large")
}
