package chunk

import (
	"bytes"
	"context"
	"sync"
	"time"
)

const (
	// recentFor is how long a pack stays in memory after it was last used.
	recentFor = 10 * time.Second
	// recentBytes bounds what stays.
	recentBytes = 48 << 20
	// recentManifests is how many manifests stay, of at most recentManifest bytes as they are stored.
	recentManifests = 8
	recentManifest  = 1 << 20
)

// recent are packs and manifests that were read a moment ago and found to be what was stored: copies of a snapshot come by the dozen, and to read and verify its packs for each of them takes longer than all
// else of what they need of the store. What has become of a pack in the backend meanwhile is seen when it is read next; a manifest is read each time, and is the one that was
// checked if its bytes are the same.
type recent struct {
	mu    sync.Mutex
	packs map[recentKey]*recentPack
	bytes int         // of those that are there
	sweep *time.Timer // nil: nothing stays

	manifests map[string]readManifest // by their names in the backend
}

// readManifest is a manifest whose seal was checked.
type readManifest struct {
	stored []byte
	m      *Manifest
	last   time.Time
}

// recentKey has the hash of the content, so that no other pack of that name is taken for it.
type recentKey struct {
	tenant, id, hash string
	version          int
}

type recentPack struct {
	there chan struct{} // closed when the pages are, or are not
	pages []byte        // nil: they could not be read
	last  time.Time     // that somebody asked for it
}

// get returns the pages of a pack, which nobody may change. Who asks first reads them; the others wait for that.
func (r *recent) get(ctx context.Context, key recentKey, read func() ([]byte, error)) ([]byte, error) {
	for {
		r.mu.Lock()
		p := r.packs[key]
		if p == nil {
			p = &recentPack{there: make(chan struct{}), last: time.Now()}
			if r.packs == nil {
				r.packs = map[recentKey]*recentPack{}
			}
			r.packs[key] = p
			r.mu.Unlock()
			return r.fill(key, p, read)
		}
		p.last = time.Now()
		r.mu.Unlock()
		select {
		case <-p.there:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p.pages != nil {
			return p.pages, nil
		} // perhaps whoever read it was given up
	}
}

func (r *recent) fill(key recentKey, p *recentPack, read func() ([]byte, error)) ([]byte, error) {
	pages, err := read()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(p.there)
	if err != nil {
		delete(r.packs, key)
		return nil, err
	}
	p.pages = pages
	r.bytes += len(pages)
	for r.bytes > recentBytes {
		r.dropOldest()
	}
	r.sweepLater()
	return pages, nil
}

// manifest returns what was read of the same bytes a moment ago; nil: nothing was.
func (r *recent) manifest(name string, stored []byte) *Manifest {
	r.mu.Lock()
	defer r.mu.Unlock()
	is, ok := r.manifests[name]
	if !ok || !bytes.Equal(is.stored, stored) {
		return nil
	}
	is.last = time.Now()
	r.manifests[name] = is
	m := *is.m
	return &m
}

func (r *recent) remember(name string, stored []byte, m *Manifest) {
	if len(stored) > recentManifest {
		return
	}
	own := *m
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifests == nil {
		r.manifests = map[string]readManifest{}
	}
	r.manifests[name] = readManifest{stored, &own, time.Now()}
	for len(r.manifests) > recentManifests {
		oldest := ""
		for n, is := range r.manifests {
			if oldest == "" || is.last.Before(r.manifests[oldest].last) {
				oldest = n
			}
		}
		delete(r.manifests, oldest)
	}
	r.sweepLater()
}

// sweepLater has what is not asked for any more let go of.
func (r *recent) sweepLater() {
	if r.sweep == nil && len(r.packs)+len(r.manifests) > 0 {
		r.sweep = time.AfterFunc(recentFor, r.dropOld)
	}
}

// dropOldest lets go of what has not been asked for for the longest time, of what is there.
func (r *recent) dropOldest() {
	var oldest recentKey
	var found *recentPack
	for k, p := range r.packs {
		if p.pages != nil && (found == nil || p.last.Before(found.last)) {
			oldest, found = k, p
		}
	}
	r.drop(oldest)
}

func (r *recent) drop(key recentKey) {
	r.bytes -= len(r.packs[key].pages)
	delete(r.packs, key)
}

func (r *recent) dropOld() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, p := range r.packs {
		if p.pages != nil && time.Since(p.last) >= recentFor {
			r.drop(k)
		}
	}
	for name, is := range r.manifests {
		if time.Since(is.last) >= recentFor {
			delete(r.manifests, name)
		}
	}
	r.sweep = nil
	r.sweepLater()
}

// close lets go of everything.
func (r *recent) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sweep != nil {
		r.sweep.Stop()
	}
	r.packs, r.bytes, r.manifests = nil, 0, nil
}
