package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"
)

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	must.NoError(t, err)
	return fi.Sys().(*syscall.Stat_t).Ino //nolint:forcetypeassert // on Linux
}

func makeOwn(t *testing.T, s *Store, tenant, template string) *Lease {
	t.Helper()
	_, err := s.MakeOwn(t.Context(), tenant, template)
	must.NoError(t, err)
	l, err := s.AcquireOwn(tenant, template)
	must.NoError(t, err)
	t.Cleanup(l.Release)
	return l
}

func TestOwn_sharesNoInodeAndHasTheSameContent(t *testing.T) {
	s := open(t)
	made := imported(t, s, "base", "content")
	shared, err := s.Acquire("base")
	must.NoError(t, err)
	defer shared.Release()
	a, b := makeOwn(t, s, "a", "base"), makeOwn(t, s, "b", made.Digest)
	must.Eq(t, made.Digest, a.Template.Digest)
	seen := map[uint64]bool{}
	for _, root := range []string{shared.Root, a.Root, b.Root} {
		got, err := os.ReadFile(filepath.Join(root, "content"))
		must.NoError(t, err)
		must.Eq(t, "content", string(got))
		must.Eq(t, inode(t, filepath.Join(root, "bin/su")), inode(t, filepath.Join(root, "bin/also")), must.Sprint("links within it stay"))
		seen[inode(t, filepath.Join(root, "content"))] = true
	}
	must.Eq(t, 3, len(seen))
	// K17: what is written into the pages of one's file is in nobody else's.
	must.NoError(t, os.WriteFile(filepath.Join(a.Root, "content"), []byte("tampered"), 0o600))
	for _, root := range []string{shared.Root, b.Root} {
		got, err := os.ReadFile(filepath.Join(root, "content"))
		must.NoError(t, err)
		must.Eq(t, "content", string(got))
	}
	must.NoError(t, s.Verify(t.Context(), "base"))
}

func TestOwn_isMadeOnceHoweverManyAskAndFoundAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(Config{Dir: dir})
	must.NoError(t, err)
	base := imported(t, s, "base", "content")
	var made atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := s.MakeOwn(t.Context(), "acme", "base"); err != nil {
				t.Error(err)
			}
			made.Add(1)
		})
	}
	wg.Wait()
	must.Eq(t, 16, made.Load())
	must.Eq(t, []Own{{"acme", base.Digest}}, s.Owned())
	left, err := os.ReadDir(filepath.Join(dir, tempDir))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
	again, err := s.MakeOwn(t.Context(), "acme", "base")
	must.NoError(t, err)
	must.False(t, again)

	must.NoError(t, s.Close())
	s, err = Open(Config{Dir: dir})
	must.NoError(t, err)
	must.Eq(t, []Own{{"acme", base.Digest}}, s.Owned())
	l, err := s.AcquireOwn("acme", base.Digest)
	must.NoError(t, err)
	must.ErrorIs(t, s.Remove(t.Context(), "base"), ErrInUse)
	must.ErrorIs(t, s.RemoveOwn(t.Context(), Own{"acme", base.Digest}), ErrInUse)
	l.Release()
	must.NoError(t, s.Remove(t.Context(), "base"), must.Sprint("and the copy with it"))
	must.SliceEmpty(t, s.Owned())
	for _, d := range []string{ownDir, treesDir, tempDir} {
		left, err := os.ReadDir(filepath.Join(dir, d))
		must.NoError(t, err)
		must.SliceEmpty(t, left, must.Sprint(d))
	}
	must.NoError(t, s.Close())
}

func TestOwn_isRemovedWithItsTenant(t *testing.T) {
	s := open(t)
	base := imported(t, s, "base", "content")
	makeOwn(t, s, "b", "base")
	l := makeOwn(t, s, "a", "base")
	l.Release()
	must.NoError(t, s.RemoveOwn(t.Context(), Own{"a", base.Digest}))
	must.NoError(t, s.RemoveOwn(t.Context(), Own{"a", base.Digest}), must.Sprint("again is the same"))
	must.Eq(t, []Own{{"b", base.Digest}}, s.Owned())
	_, err := s.AcquireOwn("a", "base")
	must.ErrorIs(t, err, ErrNotFound)
	must.NoError(t, s.Verify(t.Context(), "base"))
}

func TestOwn_refuses(t *testing.T) {
	s := open(t)
	base := imported(t, s, "base", "content")
	for _, tenant := range []string{"", "..", "a/b", "A", "-a", "*"} {
		_, err := s.MakeOwn(t.Context(), tenant, "base")
		must.ErrorIs(t, err, ErrInvalid)
		must.ErrorIs(t, s.RemoveOwn(t.Context(), Own{tenant, base.Digest}), ErrInvalid)
	}
	must.ErrorIs(t, s.RemoveOwn(t.Context(), Own{"a", "../trees"}), ErrInvalid)
	_, err := s.MakeOwn(t.Context(), "a", "other")
	must.ErrorIs(t, err, ErrNotFound)
	_, err = s.AcquireOwn("a", "base")
	must.ErrorIs(t, err, ErrNotFound)

	// What was tampered with in the shared tree gets into no copy.
	l, err := s.Acquire("base")
	must.NoError(t, err)
	must.NoError(t, os.WriteFile(filepath.Join(l.Root, "content"), []byte("tampered"), 0o600))
	l.Release()
	_, err = s.MakeOwn(t.Context(), "a", "base")
	must.ErrorIs(t, err, ErrChanged)
	must.SliceEmpty(t, s.Owned())
	left, err := os.ReadDir(filepath.Join(s.dir, tempDir))
	must.NoError(t, err)
	must.SliceEmpty(t, left)
}

func TestOwn_goesOnWhenNobodyWaits(t *testing.T) {
	s := open(t)
	base := imported(t, s, "base", "content")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.MakeOwn(ctx, "a", "base"); err != nil {
		must.True(t, errors.Is(err, context.Canceled))
	}
	_, err := s.MakeOwn(t.Context(), "a", "base")
	must.NoError(t, err)
	must.Eq(t, []Own{{"a", base.Digest}}, s.Owned())
	must.NoError(t, s.Close())
	_, err = s.MakeOwn(t.Context(), "b", "base")
	must.ErrorIs(t, err, os.ErrClosed)
}
