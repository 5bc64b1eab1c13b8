package logbook

import (
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

const (
	followEntries = 512       // that Next returns at most
	followBytes   = 512 << 10 // that it reads at most
)

// Follower reads a book from a place on, and every entry once. It belongs to one goroutine.
type Follower struct {
	id   api.SandboxID
	k    *book
	q    Query
	gen  int64 // of the file that it is in
	at   int64 // bytes of it that are read
	from bool  // gen and at are valid
	last Entry // that was handed out
}

// Follow returns a follower of the book, from the first entry on that q wants. The direction and the limit of q mean nothing here.
func (b *Books) Follow(id api.SandboxID, q Query) *Follower {
	q.Backward, q.Limit = false, 0
	return &Follower{id: id, k: b.book(id), q: q, gen: everything}
}

// Next returns the entries that come next. Where it has come to the end of the book, wait is closed when there are more; otherwise wait
// is nil, and there may be more at once. Entries that were thrown away before they could be read are an entry that says so.
func (f *Follower) Next() (entries []Entry, wait <-chan struct{}, err error) {
	f.k.mu.Lock()
	s, err := f.k.look(f.gen)
	f.k.mu.Unlock()
	if err != nil {
		return nil, nil, fmt.Errorf("logbook of %s: %w", f.id, err)
	}
	defer s.close()
	lost := f.from && f.gen < s.gen-1
	if !f.from || lost {
		f.gen, f.at, f.from = s.gen-1, 0, true
	}
	read := int64(0)
	for _, p := range s.files {
		if p.gen < f.gen {
			continue
		}
		if p.gen > f.gen {
			f.gen, f.at = p.gen, 0
		}
		if f.at == 0 && !f.q.After.IsZero() {
			if f.at, _, err = search(p.f, p.size, func(t time.Time) bool { return !f.q.early(t) }); err != nil {
				return nil, nil, fmt.Errorf("logbook of %s: %w", f.id, err)
			}
		}
		stopped := false
		begin := f.at
		err := forward(p.f, f.at, p.size, func(line []byte, end int64) bool {
			f.at = end
			if e, ok := f.q.parse(line); ok {
				entries = append(entries, e)
			}
			stopped = len(entries) >= followEntries || read+end-begin >= followBytes
			return !stopped
		})
		if err != nil {
			return nil, nil, fmt.Errorf("logbook of %s: %w", f.id, err)
		}
		if read += f.at - begin; stopped {
			return f.out(entries, lost), nil, nil
		}
	}
	return f.out(entries, lost), s.changed, nil
}

// out remembers the last entry, and says first what is missing.
func (f *Follower) out(entries []Entry, lost bool) []Entry {
	if lost {
		at := f.last.Time
		if at.IsZero() {
			at = f.q.After
		}
		gap := Entry{Time: at, Level: Warn, Source: Platform, Message: "entries are missing here: they came faster than they were read"}
		entries = append([]Entry{gap}, entries...)
	}
	if len(entries) > 0 {
		f.last = entries[len(entries)-1]
	}
	return entries
}
