// Package logbook keeps what the processes of sandboxes print and what the platform did with them, as entries with a time, a
// level and a source: a bounded book for each sandbox, in files, that outlives the daemon and, for a while, the sandbox.
//
// It owns the files in its folder. It never decides what is worth an entry, and nothing here waits for a disk to sync: a book is a
// help to people, not a record of what exists.
package logbook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Levels, in the order of their weight.
const (
	Debug = "debug"
	Info  = "info"
	Warn  = "warn"
	Error = "error"
)

// Sources of entries.
const (
	Stdout   = "stdout"
	Stderr   = "stderr"
	Terminal = "pty"
	Platform = "platform" // what the node did with the sandbox
)

// MaxMessage bounds a message, in bytes; longer lines become several entries.
const MaxMessage = 8 << 10

// Entry is one line.
type Entry struct {
	Time    time.Time         `json:"time"` // first: see timeOf
	Level   string            `json:"level"`
	Source  string            `json:"source"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// DefaultSize is how many bytes of entries are kept of one sandbox, at least; at most twice as many.
const DefaultSize = 4 << 20

// maxDrift is how far the time of an entry may be later than it was: see book.timeFor.
const maxDrift = 250 * time.Millisecond

const older = ".1" // suffix of the file before the current one

// Books are the books of a node. Safe for concurrent use.
type Books struct {
	dir  string
	size int64

	mu   sync.Mutex
	open map[api.SandboxID]*book
}

// book is one sandbox's: the current file, and the one before it. A file is opened for each batch of entries: hundreds of idle
// sandboxes hold no descriptors. Files only ever grow and are renamed, so that a reader may go on without the lock in what it has opened.
type book struct {
	size int64 // of a file, at most
	path string

	mu      sync.Mutex
	ready   bool          // last is known, and the current file ends with a whole line
	changed chan struct{} // closed and replaced at every batch of entries
	last    time.Time
	gen     int64 // how often a new file was begun since the daemon started
}

// Open makes the folder where it is missing. size 0 means DefaultSize.
func Open(dir string, size int64) (*Books, error) {
	if size == 0 {
		size = DefaultSize
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("logbooks: %w", err)
	}
	return &Books{dir: dir, size: size, open: map[api.SandboxID]*book{}}, nil
}

func (b *Books) book(id api.SandboxID) *book {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.open[id]
	if k == nil {
		k = &book{size: b.size, path: filepath.Join(b.dir, string(id)), changed: make(chan struct{})}
		b.open[id] = k
	}
	return k
}

// Append adds entries, in the order of their times: one that is older than the last becomes as old as that. Messages and fields are
// made harmless: see Clean. It returns how many bytes they take.
func (b *Books) Append(id api.SandboxID, entries ...Entry) (int, error) {
	if len(entries) == 0 {
		return 0, nil
	}
	k := b.book(id)
	k.mu.Lock()
	defer k.mu.Unlock()
	n, err := k.append(entries)
	if err != nil {
		return n, fmt.Errorf("logbook of %s: %w", id, err)
	}
	close(k.changed)
	k.changed = make(chan struct{})
	return n, nil
}

func (k *book) append(entries []Entry) (n int, err error) {
	if err := k.prepare(); err != nil {
		return 0, err
	}
	f, size, err := k.openEnd()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var buf bytes.Buffer
	flush := func() error {
		m, err := f.Write(buf.Bytes())
		size, n = size+int64(m), n+m
		if m < buf.Len() {
			k.ready = false // half a line is at its end
		}
		buf.Reset()
		return err
	}
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, e := range entries {
		e.Time = k.timeFor(e.Time)
		e.Message, e.Fields = Clean(e.Message), cleanFields(e.Fields)
		had := buf.Len()
		if err := enc.Encode(e); err != nil {
			return n, err
		}
		if at := size + int64(had); at > 0 && size+int64(buf.Len()) > k.size {
			line := bytes.Clone(buf.Bytes()[had:])
			buf.Truncate(had)
			if err := flush(); err != nil {
				return n, err
			}
			if err := os.Rename(k.path, k.path+older); err != nil {
				return n, err
			}
			k.gen++
			if err := f.Close(); err != nil {
				return n, err
			}
			if f, size, err = k.openEnd(); err != nil {
				return n, err
			}
			buf.Write(line)
		}
	}
	return n, flush()
}

func (k *book) openEnd() (*os.File, int64, error) {
	f, err := os.OpenFile(k.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// timeFor makes the times of a book grow, so that a time is a place to go on from. Clients of the contract know such places in
// milliseconds only: so entries are one apart, as long as that moves none of them by more than maxDrift.
func (k *book) timeFor(t time.Time) time.Time {
	at := t.UTC()
	if next := k.last.Add(time.Millisecond); at.Before(next) {
		if next.Sub(at) <= maxDrift {
			at = next
		} else if next = k.last.Add(time.Microsecond); at.Before(next) {
			at = next
		}
	}
	k.last = at
	return at
}

// prepare finds out, once, where an earlier daemon stopped. A line that a crash cut off gets its end, so that it spoils no other.
func (k *book) prepare() error {
	if k.ready {
		return nil
	}
	s, err := k.look(everything)
	if err != nil {
		return err
	}
	defer s.close()
	for i := len(s.files) - 1; i >= 0 && k.last.IsZero(); i-- {
		f := s.files[i]
		err := backward(f.f, f.size, func(line []byte) bool {
			at, ok := timeOf(line)
			if ok {
				k.last = at
			}
			return !ok
		})
		if err != nil {
			return err
		}
	}
	if n := len(s.files); n > 0 && s.files[n-1].gen == k.gen && s.files[n-1].size > 0 {
		f := s.files[n-1]
		var end [1]byte
		if _, err := f.f.ReadAt(end[:], f.size-1); err != nil {
			return err
		}
		if end[0] != '\n' {
			w, _, err := k.openEnd()
			if err != nil {
				return err
			}
			_, err = w.WriteString("\n")
			if err := errors.Join(err, w.Close()); err != nil {
				return err
			}
		}
	}
	k.ready = true
	return nil
}

// Last returns the time of the last entry; zero where there is none.
func (b *Books) Last(id api.SandboxID) (time.Time, error) {
	k := b.book(id)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.prepare(); err != nil {
		return time.Time{}, fmt.Errorf("logbook of %s: %w", id, err)
	}
	return k.last, nil
}

// forgetAfter is how long after its last entry the book of a sandbox that is gone is held in memory: nobody adds to it or follows it then, and whoever
// reads it opens it again.
const forgetAfter = time.Hour

// Sweep removes the books whose last entry is older than age, and the oldest ones where there are more than limit, unless keep wants
// them.
func (b *Books) Sweep(age time.Duration, limit int, keep func(api.SandboxID) bool) error {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return fmt.Errorf("logbooks: %w", err)
	}
	type file struct {
		name string
		id   api.SandboxID
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		id := api.SandboxID(strings.TrimSuffix(e.Name(), older))
		if info, err := e.Info(); err == nil && !keep(id) {
			files = append(files, file{e.Name(), id, info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) }) // newest first
	var errs []error
	left := map[api.SandboxID]bool{}
	for i, f := range files {
		if i < limit && time.Since(f.at) < age {
			left[f.id] = left[f.id] || time.Since(f.at) < forgetAfter
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(b.dir, f.name)))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.open {
		if !left[id] && !keep(id) { // of some only a reader has ever asked
			delete(b.open, id)
		}
	}
	return errors.Join(errs...)
}
