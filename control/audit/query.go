package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Query selects events. Its zero value selects all.
type Query struct {
	After, Before time.Time // After <= time < Before; zero: no bound
	Tenant        string
	User          string
	Action        string // "sandbox.create", or "sandbox.*"
	Resource      string // "sandbox", or "sandbox/<id>"
	Result        string
	Request       string
}

// Page asks for a part of what a query selects.
type Page struct {
	Limit     int    // 1 to MaxPage; 0: DefaultPage
	Ascending bool   // oldest first; else newest first
	From      uint64 // index to begin with, Next of the page before; 0: at the beginning
}

// Limits of one page.
const (
	DefaultPage = 100
	MaxPage     = 1000
	// maxScan is how many events one call looks at: a query that selects little gets a page that is not full, and goes on.
	maxScan = 200_000
)

// mark is where an event is. Every markEvery-th one has one.
type mark struct {
	index  uint64
	offset int64
	time   time.Time
}

const markEvery = 128

func (s *segment) note(index uint64, offset int64, t time.Time) {
	if (index-s.first)%markEvery == 0 {
		s.marks = append(s.marks, mark{index, offset, t})
	}
}

// Match reports whether q selects e.
func (q *Query) Match(e *Event) bool {
	if !q.After.IsZero() && e.Time.Before(q.After) || !q.Before.IsZero() && !e.Time.Before(q.Before) {
		return false
	}
	for _, f := range [][2]string{{q.Tenant, e.Tenant}, {q.User, e.User}, {q.Result, e.Result}, {q.Request, e.Request}} {
		if f[0] != "" && f[0] != f[1] {
			return false
		}
	}
	if q.Action != "" && q.Action != e.Action {
		prefix, ok := strings.CutSuffix(q.Action, "*")
		if !ok || !strings.HasPrefix(e.Action, prefix) {
			return false
		}
	}
	if kind, id, ok := strings.Cut(q.Resource, "/"); q.Resource != "" && (kind != e.Resource || ok && id != e.ResourceID) {
		return false
	}
	return true
}

// Query returns a page of the events that q selects, and where the next page begins: 0 where there is none.
func (l *Log) Query(ctx context.Context, q Query, p Page) (events []Event, next uint64, err error) {
	if p.Limit == 0 {
		p.Limit = DefaultPage
	}
	if p.Limit < 1 || p.Limit > MaxPage {
		return nil, 0, fmt.Errorf("limit %d is not between 1 and %d", p.Limit, MaxPage)
	}
	for seen := 0; ; {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		block, err := l.block(p.From, p.Ascending)
		if errors.Is(err, os.ErrNotExist) {
			continue // its segment was removed meanwhile
		}
		if err != nil || len(block) == 0 {
			return events, 0, err
		}
		for i := range block {
			e := &block[i]
			if !p.Ascending {
				e = &block[len(block)-1-i]
			}
			if beyond := p.Ascending && !q.Before.IsZero() && !e.Time.Before(q.Before) ||
				!p.Ascending && !q.After.IsZero() && e.Time.Before(q.After); beyond { // times never go back
				return events, 0, nil
			}
			if q.Match(e) {
				if len(events) == p.Limit {
					return events, e.Index, nil
				}
				events = append(events, *e)
			}
		}
		seen += len(block)
		p.From = block[len(block)-1].Index + 1
		if !p.Ascending {
			if p.From = block[0].Index - 1; p.From == 0 {
				return events, 0, nil
			}
		}
		if seen >= maxScan {
			return events, p.From, nil
		}
	}
}

// block returns a run of events that begins (or, where not ascending, ends) with the event from; 0: with the first, the last.
func (l *Log) block(from uint64, ascending bool) ([]Event, error) {
	l.mu.Lock()
	last := l.state.index
	oldest := l.segments[0].first
	switch {
	case from == 0 && ascending, ascending && from < oldest:
		from = oldest
	case from == 0, !ascending && from > last:
		from = last
	}
	if from < oldest || from > last {
		l.mu.Unlock()
		return nil, nil
	}
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].first > from }) - 1
	seg := l.segments[i]
	read := segmentView{first: seg.first, begin: seg.begin, size: seg.size, marks: seg.marks}
	l.mu.Unlock()
	f, err := os.Open(filepath.Join(l.cfg.Dir, segmentName(read.first)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if len(read.marks) == 0 {
		if read.marks, err = makeMarks(f, read); err != nil {
			return nil, err
		}
		l.mu.Lock()
		if len(seg.marks) == 0 {
			seg.marks = read.marks
		}
		l.mu.Unlock()
	}
	return read.events(f, from, ascending)
}

// segmentView is what a reader needs of a segment: what is durable does not change.
type segmentView struct {
	first       uint64
	begin, size int64
	marks       []mark
}

// events returns those of the block that holds from, from there on or up to there.
func (s segmentView) events(f *os.File, from uint64, ascending bool) ([]Event, error) {
	i := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].index > from }) - 1
	if i < 0 {
		return nil, fmt.Errorf("%s does not hold event %d", segmentName(s.first), from)
	}
	end := s.size
	if i+1 < len(s.marks) {
		end = s.marks[i+1].offset
	}
	out := make([]Event, 0, markEvery)
	sc := newScanner(f, s.marks[i].offset, end)
	for {
		rec, err := sc.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s at byte %d: %w", segmentName(s.first), rec.offset, err)
		}
		e, err := decodeEvent(rec.body)
		if err != nil {
			return nil, fmt.Errorf("%s at byte %d: %w", segmentName(s.first), rec.offset, err)
		}
		if ascending && e.Index < from {
			continue
		}
		if !ascending && e.Index > from {
			return out, nil
		}
		out = append(out, e)
	}
}

func makeMarks(f *os.File, s segmentView) ([]mark, error) {
	var marks segment
	marks.first = s.first
	sc := newScanner(f, s.begin, s.size)
	for index := s.first; ; index++ {
		rec, err := sc.next()
		if errors.Is(err, io.EOF) {
			return marks.marks, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s at byte %d: %w", segmentName(s.first), rec.offset, err)
		}
		marks.note(index, rec.offset, bodyTime(rec.body))
	}
}
