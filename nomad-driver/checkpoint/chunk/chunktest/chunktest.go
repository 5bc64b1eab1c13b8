// Package chunktest is the conformance test of the snapshot store's backends, and of the store on each of them.
//
// It owns nothing beyond a test. Only tests import it.
package chunktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
)

// Conform checks a backend, which is empty.
func Conform(t *testing.T, b chunk.Backend) {
	t.Run("gives back what was put", func(t *testing.T) { givesBack(t, b) })
	t.Run("lists what is there", func(t *testing.T) { lists(t, b) })
	t.Run("refuses names that are none", func(t *testing.T) { refuses(t, b) })
	t.Run("shows all of a put or nothing", func(t *testing.T) { atomic(t, b) })
	t.Run("ends with its context", func(t *testing.T) { ends(t, b) })
	t.Run("keeps snapshots", func(t *testing.T) { keeps(t, b) })
}

func givesBack(t *testing.T, b chunk.Backend) {
	ctx := t.Context()
	_, err := b.Get(ctx, "t/a/none", 10)
	must.ErrorIs(t, err, chunk.ErrNotFound)
	must.NoError(t, b.Delete(ctx, "t/a/none"), must.Sprint("what is not there is no error"))
	for _, size := range []int{1, 4096, 5 << 20} {
		data := make([]byte, size)
		_, _ = rand.Read(data)
		name := fmt.Sprintf("t/a/object-%d", size)
		must.NoError(t, b.Put(ctx, name, data))
		got, err := b.Get(ctx, name, int64(size))
		must.NoError(t, err)
		must.True(t, bytes.Equal(data, got))
		must.NoError(t, b.Put(ctx, name, []byte("replaced")))
		got, err = b.Get(ctx, name, 100)
		must.NoError(t, err)
		must.Eq(t, "replaced", string(got))
		_, err = b.Get(ctx, name, 7)
		must.ErrorIs(t, err, chunk.ErrBad, must.Sprint("more than the limit is an error"))
		must.NoError(t, b.Delete(ctx, name))
		_, err = b.Get(ctx, name, 100)
		must.ErrorIs(t, err, chunk.ErrNotFound)
	}
}

func lists(t *testing.T, b chunk.Backend) {
	ctx := t.Context()
	none, err := b.List(ctx, "t/b/")
	must.NoError(t, err)
	must.SliceEmpty(t, none)
	want := []string{}
	before := time.Now().Add(-time.Minute)
	for i := range 1100 { // more than a page of S3's
		name := fmt.Sprintf("t/b/%04d", i)
		must.NoError(t, b.Put(ctx, name, []byte("12345")))
		want = append(want, name)
	}
	must.NoError(t, b.Put(ctx, "t/bb/other", []byte("x")))
	all, err := b.List(ctx, "t/b/")
	must.NoError(t, err)
	got := []string{}
	for _, o := range all {
		must.Eq(t, 5, o.Size)
		must.True(t, o.Put.After(before) && o.Put.Before(time.Now().Add(time.Minute)))
		got = append(got, o.Name)
		must.NoError(t, b.Delete(ctx, o.Name))
	}
	slices.Sort(got)
	must.Eq(t, want, got)
	must.NoError(t, b.Delete(ctx, "t/bb/other"))
}

func refuses(t *testing.T, b chunk.Backend) {
	for _, name := range []string{"", ".", "..", "../x", "/x", "a/../../x", "a//b", "a/", "a/./b", "A", "a b", "a\x00b", "ä"} {
		must.Error(t, b.Put(t.Context(), name, []byte("x")), must.Sprintf("%q", name))
		_, err := b.Get(t.Context(), name, 10)
		must.Error(t, err, must.Sprintf("%q", name))
		must.Error(t, b.Delete(t.Context(), name), must.Sprintf("%q", name))
	}
}

func atomic(t *testing.T, b chunk.Backend) {
	ctx := t.Context()
	versions := [2][]byte{bytes.Repeat([]byte("a"), 1<<20), bytes.Repeat([]byte("b"), 1<<20)}
	must.NoError(t, b.Put(ctx, "t/c/x", versions[0]))
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for range 10 {
				if err := b.Put(ctx, "t/c/x", versions[i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 20 {
		got, err := b.Get(ctx, "t/c/x", 1<<20)
		must.NoError(t, err)
		must.True(t, bytes.Equal(got, versions[0]) || bytes.Equal(got, versions[1]), must.Sprint("half of a put is seen"))
	}
	wg.Wait()
	must.NoError(t, b.Delete(ctx, "t/c/x"))
}

func ends(t *testing.T, b chunk.Backend) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.ErrorIs(t, b.Put(ctx, "t/d/x", []byte("x")), context.Canceled)
	all, err := b.List(t.Context(), "t/d/")
	must.NoError(t, err)
	must.SliceEmpty(t, all)
}

// keeps is a store's whole way on the backend.
func keeps(t *testing.T, b chunk.Backend) {
	ctx := t.Context()
	key, err := chunk.OpenLocalKey(filepath.Join(t.TempDir(), "key"))
	must.NoError(t, err)
	s, err := chunk.Open(b, key)
	must.NoError(t, err)
	defer func() { must.NoError(t, s.Close()) }()
	dir := t.TempDir()
	content := make([]byte, 2000*chunk.Page+17)
	_, _ = rand.Read(content)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "pages"), content, 0o600))
	_, err = s.Put(ctx, "tenant", "one", nil, chunk.Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	_, err = s.Put(ctx, "tenant", "one", nil, chunk.Root{Name: "m", Dir: dir})
	must.ErrorIs(t, err, chunk.ErrExists)
	m, err := s.Put(ctx, "tenant", "two", nil, chunk.Root{Name: "m", Dir: dir})
	must.NoError(t, err)
	must.Zero(t, m.Stored, must.Sprint("equal pages are stored once"))
	must.NoError(t, s.Delete(ctx, "tenant", "one"))
	list, err := s.List(ctx, "tenant")
	must.NoError(t, err)
	must.Len(t, 1, list)
	m, err = s.Manifest(ctx, "tenant", "two")
	must.NoError(t, err)
	out := filepath.Join(t.TempDir(), "out")
	must.NoError(t, s.Get(ctx, m, "m", out, 0))
	got, err := os.ReadFile(filepath.Join(out, "pages"))
	must.NoError(t, err)
	must.True(t, bytes.Equal(content, got))
	_, err = s.Manifest(ctx, "another", "two")
	must.ErrorIs(t, err, chunk.ErrNotFound)
}
