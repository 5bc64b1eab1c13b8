package logbook

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Query says which entries are wanted.
type Query struct {
	After    time.Time // only later ones; zero: from the first that is kept
	Before   time.Time // only earlier ones; zero: to the last
	Level    string    // only of this weight and more; empty: all
	Source   string    // only of this source; empty: all
	Search   string    // only messages with this text
	Limit    int       // at most so many; 0: all that are kept
	Backward bool      // the newest first; the limit keeps the newest
	// WholeMillis is for those who go on from a time in milliseconds: the limit does not cut between two entries of one
	// millisecond. There are fewer then, or, where all are of one millisecond, more.
	WholeMillis bool
}

var weights = map[string]int{Debug: 0, Info: 1, Warn: 2, Error: 3}

// Weight returns how much a level weighs, and false for a word that is none.
func Weight(level string) (int, bool) {
	w, ok := weights[level]
	return w, ok
}

func (q Query) early(t time.Time) bool { return !q.After.IsZero() && !t.After(q.After) }
func (q Query) late(t time.Time) bool  { return !q.Before.IsZero() && !t.Before(q.Before) }

// parse returns the entry of a line where it is wanted.
func (q Query) parse(line []byte) (e Entry, ok bool) {
	if t, ok := timeOf(line); !ok || q.early(t) || q.late(t) {
		return e, false
	}
	if json.Unmarshal(line, &e) != nil { // not ours, or cut off by a crash
		return e, false
	}
	return e, (q.Level == "" || weights[e.Level] >= weights[q.Level]) && (q.Source == "" || e.Source == q.Source) &&
		(q.Search == "" || strings.Contains(e.Message, q.Search))
}

// Read returns entries. A sandbox without a book has none.
func (b *Books) Read(id api.SandboxID, q Query) ([]Entry, error) {
	k := b.book(id)
	k.mu.Lock()
	s, err := k.look(everything)
	k.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("logbook of %s: %w", id, err)
	}
	defer s.close()
	p := page{q: q}
	if q.Backward {
		slices.Reverse(s.files)
	}
	for _, f := range s.files {
		if err := p.read(f); err != nil {
			return nil, fmt.Errorf("logbook of %s: %w", id, err)
		}
	}
	return p.entries, nil
}

// page collects what a query wants.
type page struct {
	q       Query
	entries []Entry
	full    bool
}

func (p *page) read(f part) error {
	if p.full {
		return nil
	}
	take := func(line []byte) bool {
		if e, ok := p.q.parse(line); ok {
			p.add(e)
		}
		return !p.full
	}
	if p.q.Backward {
		_, end, err := search(f.f, f.size, p.q.late)
		if err != nil {
			return err
		}
		return backward(f.f, end, func(line []byte) bool {
			if t, ok := timeOf(line); ok && p.q.early(t) {
				p.full = true // and so is all that comes
			}
			return !p.full && take(line)
		})
	}
	start, _, err := search(f.f, f.size, func(t time.Time) bool { return !p.q.early(t) })
	if err != nil {
		return err
	}
	return forward(f.f, start, f.size, func(line []byte, _ int64) bool {
		if t, ok := timeOf(line); ok && p.q.late(t) {
			p.full = true
		}
		return !p.full && take(line)
	})
}

// add takes an entry, or finds that the page is full: the one after the last is needed for that only with WholeMillis.
func (p *page) add(e Entry) {
	limit := p.q.Limit
	if limit > 0 && len(p.entries) >= limit {
		last := milli(p.entries[len(p.entries)-1])
		if milli(e) != last {
			p.full = true
			return
		}
		if i := slices.IndexFunc(p.entries, func(e Entry) bool { return milli(e) == last }); i > 0 {
			p.entries, p.full = p.entries[:i], true
			return
		}
	}
	p.entries = append(p.entries, e)
	p.full = limit > 0 && len(p.entries) == limit && !p.q.WholeMillis
}

func milli(e Entry) int64 { return e.Time.UnixMilli() }
