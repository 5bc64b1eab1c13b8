package chunk

import (
	"context"
	"sync"
	"time"
)

const (
	// recentFor is how long a pack stays in memory after it was last used.
	recentFor = 10 * time.Second
	// recentBytes bounds what stays.
	recentBytes = 48 << 20
)

// recent are packs that were read a moment ago, whole and found to be what was stored: copies of a snapshot come by the dozen, and to read and verify its packs for each of them takes longer than all
// else of what they need of the store. What has become of a pack in the backend meanwhile is seen when it is read next.
type recent struct {
	mu    sync.Mutex
	packs map[recentKey]*recentPack
	bytes int         // of those that are there
	sweep *time.Timer // nil: nothing stays
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
	if r.sweep == nil && len(r.packs) > 0 {
		r.sweep = time.AfterFunc(recentFor, r.dropOld)
	}
	return pages, nil
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
	r.sweep = nil
	if len(r.packs) > 0 {
		r.sweep = time.AfterFunc(recentFor/2, r.dropOld)
	}
}

// close lets go of everything.
func (r *recent) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sweep != nil {
		r.sweep.Stop()
	}
	r.packs, r.bytes = nil, 0
}
