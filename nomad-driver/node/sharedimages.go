package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
)

// imagesKept is how long the images of a snapshot stay after the last copy that was made of them.
const imagesKept = 10 * time.Second

// sharedImages are the images of snapshots of which copies are being made, fetched and verified once for all of them: copies come by the dozen, and what differs
// between them is not in their images but for the map of their ids. Each copy has links to the files, so that they stay for as long as it needs them, whatever
// becomes of these. The next daemon sweeps what is left of them.
type sharedImages struct {
	dir string // where their folders are made
	// fetch writes the images of a snapshot into a folder that is not there.
	fetch func(ctx context.Context, m *chunk.Manifest, dir string) error
	// spawn runs a function in the background, which ends soon after life, and is waited for.
	spawn func(func())
	life  context.Context
	log   hclog.Logger

	mu   sync.Mutex
	sets map[imagesKey]*imageSet
}

// imagesKey tells snapshots apart, also one that was deleted from the next one with its id.
type imagesKey struct {
	tenant, id string
	made       time.Time
}

func imagesKeyOf(m *chunk.Manifest) imagesKey { return imagesKey{m.Tenant, m.ID, m.CreatedAt.UTC()} }

// imageSet are the images of one snapshot.
type imageSet struct {
	dir    string // in which they are the folder images
	forget context.CancelFunc
	there  chan struct{} // closed when they are there, or err is set
	err    error
	users  sync.WaitGroup // who copies them now; sharedImages.mu guards that it grows only while the set can be found
	last   time.Time      // that somebody began to; sharedImages.mu guards it
}

// copyTo makes dir, with the images of a snapshot in it. What is fetched for others too goes on when ctx ends. On error dir may be half there.
func (s *sharedImages) copyTo(ctx context.Context, m *chunk.Manifest, dir string) error {
	set := s.use(m)
	defer set.users.Done()
	select {
	case <-set.there:
	case <-ctx.Done():
		return ctx.Err()
	}
	if set.err != nil {
		return set.err
	}
	return checkpoint.ShareImages(filepath.Join(set.dir, rootImages), dir)
}

// use returns the set of a snapshot, as one of its users.
func (s *sharedImages) use(m *chunk.Manifest) *imageSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.sets[imagesKeyOf(m)]
	if set == nil {
		set = &imageSet{there: make(chan struct{})}
		var life context.Context
		life, set.forget = context.WithCancel(s.life)
		if s.sets == nil {
			s.sets = map[imagesKey]*imageSet{}
		}
		s.sets[imagesKeyOf(m)] = set
		s.spawn(func() { s.keep(life, m, set) })
	}
	set.users.Add(1)
	set.last = time.Now()
	return set
}

// keep is the life of a set.
func (s *sharedImages) keep(life context.Context, m *chunk.Manifest, set *imageSet) {
	defer set.forget()
	set.err = s.make(life, m, set)
	close(set.there)
	for set.err == nil && life.Err() == nil && !s.unused(set) {
		select {
		case <-life.Done():
		case <-time.After(imagesKept / 2):
		}
	}
	s.mu.Lock()
	if s.sets[imagesKeyOf(m)] == set {
		delete(s.sets, imagesKeyOf(m))
	}
	s.mu.Unlock()
	set.users.Wait()
	if set.dir == "" {
		return
	}
	if err := os.RemoveAll(set.dir); err != nil {
		s.log.Warn("images of a snapshot stay until this daemon starts again", "path", set.dir, "error", err)
	}
}

func (s *sharedImages) make(ctx context.Context, m *chunk.Manifest, set *imageSet) (err error) {
	if set.dir, err = os.MkdirTemp(s.dir, ".images-"); err != nil {
		return fmt.Errorf("snapshot %s: %w", m.ID, err)
	}
	err = s.fetch(ctx, m, filepath.Join(set.dir, rootImages))
	if err != nil && ctx.Err() != nil && s.life.Err() == nil {
		err = fmt.Errorf("%w: snapshot %s was deleted meanwhile", chunk.ErrNotFound, m.ID)
	}
	return err
}

func (s *sharedImages) unused(set *imageSet) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(set.last) > imagesKept
}

// forgetSnapshot lets go of what there is of a snapshot that was deleted.
func (s *sharedImages) forgetSnapshot(tenant, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, set := range s.sets {
		if k.tenant == tenant && k.id == id {
			delete(s.sets, k)
			set.forget()
		}
	}
}
