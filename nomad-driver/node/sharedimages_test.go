package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
)

// imagesTest has images in a folder of its own, and counts how often they were fetched.
type imagesTest struct {
	*sharedImages
	fetched atomic.Int32
	end     context.CancelFunc
	wg      sync.WaitGroup
}

func newImagesTest(t *testing.T, fetch func(ctx context.Context, m *chunk.Manifest, dir string) error) *imagesTest {
	it := &imagesTest{}
	life, end := context.WithCancel(t.Context())
	it.end = end
	it.sharedImages = &sharedImages{dir: t.TempDir(), spawn: it.wg.Go, life: life, log: hclog.NewNullLogger()}
	it.fetch = func(ctx context.Context, m *chunk.Manifest, dir string) error {
		it.fetched.Add(1)
		return fetch(ctx, m, dir)
	}
	t.Cleanup(func() {
		end()
		it.wg.Wait()
		left, err := os.ReadDir(it.dir)
		must.NoError(t, err)
		must.Len(t, 0, left, must.Sprint("what is shared ends with the daemon"))
	})
	return it
}

// twoImages makes one image of pages, and the one that a restore writes over.
func twoImages(_ context.Context, m *chunk.Manifest, dir string) error {
	return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "pages-1.img"), []byte(m.ID), 0o600), os.WriteFile(filepath.Join(dir, "userns-9.img"), []byte("ids"), 0o600))
}

func snapshotNamed(id string) *chunk.Manifest {
	return &chunk.Manifest{ID: id, Tenant: "acme", CreatedAt: time.Unix(1_800_000_000, 0)}
}

func TestSharedImages_areFetchedOnceForCopiesThatComeTogether(t *testing.T) {
	it := newImagesTest(t, twoImages)
	at := t.TempDir()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if err := it.copyTo(t.Context(), snapshotNamed([]string{"a", "b"}[i%2]), filepath.Join(at, strconv.Itoa(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must.Eq(t, 2, it.fetched.Load())
	inodes := map[string]map[uint64]bool{"pages-1.img": {}, "userns-9.img": {}}
	for i := range 40 {
		dir := filepath.Join(at, strconv.Itoa(i))
		b, err := os.ReadFile(filepath.Join(dir, "pages-1.img"))
		must.NoError(t, err)
		must.Eq(t, []string{"a", "b"}[i%2], string(b))
		for name, seen := range inodes {
			var st unix.Stat_t
			must.NoError(t, unix.Stat(filepath.Join(dir, name), &st))
			seen[st.Ino] = true
		}
	}
	must.MapLen(t, 2, inodes["pages-1.img"], must.Sprint("one file for all copies of a snapshot"))
	must.MapLen(t, 40, inodes["userns-9.img"], must.Sprint("each has its own map of ids"))
	it.end()
	it.wg.Wait()
	b, err := os.ReadFile(filepath.Join(at, "0", "pages-1.img"))
	must.NoError(t, err)
	must.Eq(t, "a", string(b), must.Sprint("copies keep theirs"))
}

func TestSharedImages_ofADeletedSnapshotAreForgotten(t *testing.T) {
	it := newImagesTest(t, twoImages)
	at := t.TempDir()
	must.NoError(t, it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(at, "1")))
	it.forgetSnapshot("other", "a")
	must.NoError(t, it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(at, "2")))
	must.Eq(t, 1, it.fetched.Load(), must.Sprint("another tenant's was deleted"))
	it.forgetSnapshot("acme", "a")
	it.wg.Wait() // gone from the disk, too
	left, err := os.ReadDir(it.dir)
	must.NoError(t, err)
	must.Len(t, 0, left)
	again := snapshotNamed("a")
	again.CreatedAt = again.CreatedAt.Add(time.Nanosecond)
	must.NoError(t, it.copyTo(t.Context(), again, filepath.Join(at, "3")))
	must.Eq(t, 2, it.fetched.Load())
}

func TestSharedImages_ofASnapshotThatIsDeletedMeanwhileAreNotFound(t *testing.T) {
	begun := make(chan struct{})
	it := newImagesTest(t, func(ctx context.Context, _ *chunk.Manifest, _ string) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	failed := make(chan error, 1)
	go func() { failed <- it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(t.TempDir(), "1")) }()
	<-begun
	it.forgetSnapshot("acme", "a")
	must.ErrorIs(t, <-failed, chunk.ErrNotFound)
}

func TestSharedImages_thatCannotBeFetchedAreTriedAgain(t *testing.T) {
	broken := errors.New("the store does not answer")
	var works atomic.Bool
	it := newImagesTest(t, func(ctx context.Context, m *chunk.Manifest, dir string) error {
		if !works.Load() {
			return broken
		}
		return twoImages(ctx, m, dir)
	})
	at := t.TempDir()
	must.ErrorIs(t, it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(at, "1")), broken)
	it.wg.Wait()
	works.Store(true)
	must.NoError(t, it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(at, "2")))
}

func TestSharedImages_whoGivesUpDoesNotEndTheFetchOfOthers(t *testing.T) {
	begun, on := make(chan struct{}), make(chan struct{})
	it := newImagesTest(t, func(ctx context.Context, m *chunk.Manifest, dir string) error {
		close(begun)
		<-on
		return twoImages(ctx, m, dir)
	})
	at := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- it.copyTo(ctx, snapshotNamed("a"), filepath.Join(at, "1")) }()
	<-begun
	second := make(chan error, 1)
	go func() { second <- it.copyTo(t.Context(), snapshotNamed("a"), filepath.Join(at, "2")) }()
	cancel()
	must.ErrorIs(t, <-first, context.Canceled)
	close(on)
	must.NoError(t, <-second)
	must.Eq(t, 1, it.fetched.Load())
}
