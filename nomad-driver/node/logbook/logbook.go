// Package logbook keeps what the processes of sandboxes print and what the platform did with them, as entries with a time, a
// level and a source: a bounded book for each sandbox, in files, that outlives the daemon and, for a while, the sandbox.
//
// It owns the files in its folder. It never decides what is worth an entry, and nothing here waits for a disk to sync: a book is a
// help to people, not a record of what exists.
package logbook

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	Time    time.Time         `json:"time"`
	Level   string            `json:"level"`
	Source  string            `json:"source"`
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// DefaultSize is how many bytes of entries are kept of one sandbox, at least; at most twice as many.
const DefaultSize = 4 << 20

// Books are the books of a node. Safe for concurrent use.
type Books struct {
	dir  string
	size int64

	mu   sync.Mutex
	open map[api.SandboxID]*book
}

// book is one sandbox's. Its file is opened for each batch of entries: hundreds of idle sandboxes hold no descriptors.
type book struct {
	mu      sync.Mutex
	path    string
	changed chan struct{} // closed and replaced at every entry
	last    time.Time
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
		k = &book{path: filepath.Join(b.dir, string(id)), changed: make(chan struct{})}
		b.open[id] = k
	}
	return k
}

// Append adds entries, in the order of their times: one that is older than the last becomes as old as that. Messages are made
// harmless: see Clean.
func (b *Books) Append(id api.SandboxID, entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	k := b.book(id)
	k.mu.Lock()
	defer k.mu.Unlock()
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, e := range entries {
		if !e.Time.After(k.last) {
			e.Time = k.last.Add(time.Microsecond) // so that a time is a place to go on from
		}
		k.last = e.Time
		e.Message = Clean(e.Message)
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("logbook of %s: %w", id, err)
		}
	}
	if err := k.write(buf.Bytes(), b.size); err != nil {
		return fmt.Errorf("logbook of %s: %w", id, err)
	}
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

const older = ".1" // suffix of the file before the current one

func (k *book) write(p []byte, size int64) error {
	f, err := os.OpenFile(k.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > 0 && st.Size()+int64(len(p)) > size {
		if err = os.Rename(k.path, k.path+older); err == nil {
			_ = f.Close()
			if f, err = os.OpenFile(k.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err != nil {
				return err
			}
		}
	}
	if err == nil {
		_, err = f.Write(p)
	}
	return errors.Join(err, f.Close())
}

// Query says which entries are wanted.
type Query struct {
	After    time.Time // only later ones; zero: from the first that is kept
	Before   time.Time // only earlier ones; zero: to the last
	Level    string    // only of this weight and more; empty: all
	Source   string    // only of this source; empty: all
	Search   string    // only messages with this text
	Limit    int       // at most so many; 0: all that are kept
	Backward bool      // the newest first; the limit keeps the newest
}

var weights = map[string]int{Debug: 0, Info: 1, Warn: 2, Error: 3}

// Weight returns how much a level weighs, and false for a word that is none.
func Weight(level string) (int, bool) {
	w, ok := weights[level]
	return w, ok
}

func (q Query) wants(e Entry) bool {
	return (q.After.IsZero() || e.Time.After(q.After)) && (q.Before.IsZero() || e.Time.Before(q.Before)) &&
		(q.Level == "" || weights[e.Level] >= weights[q.Level]) && (q.Source == "" || e.Source == q.Source) &&
		(q.Search == "" || strings.Contains(e.Message, q.Search))
}

// Read returns entries, and a channel that closes at the next one. A sandbox without a book has none.
func (b *Books) Read(id api.SandboxID, q Query) ([]Entry, <-chan struct{}, error) {
	k := b.book(id)
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []Entry
	for _, path := range []string{k.path + older, k.path} {
		err := scan(path, func(e Entry) bool {
			if q.wants(e) {
				out = append(out, e)
			}
			return q.Backward || q.Limit == 0 || len(out) < q.Limit
		})
		if err != nil {
			return nil, nil, fmt.Errorf("logbook of %s: %w", id, err)
		}
	}
	if q.Backward {
		for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
			out[i], out[j] = out[j], out[i]
		}
	}
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, k.changed, nil
}

// scan calls f with the entries of a file until f returns false. A line that a crash cut off is skipped.
func scan(path string, f func(Entry) bool) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	r := bufio.NewReaderSize(file, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e Entry
		if json.Unmarshal(line, &e) == nil && !f(e) {
			return nil
		}
	}
}

// Last returns the time of the last entry, to go on from after a restart.
func (b *Books) Last(id api.SandboxID) time.Time {
	k := b.book(id)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last.IsZero() {
		_ = scan(k.path, func(e Entry) bool { k.last = e.Time; return true }) // what cannot be read does not count
	}
	return k.last
}

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
	for i, f := range files {
		if i < limit && time.Since(f.at) < age {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(b.dir, f.name)))
		b.mu.Lock()
		delete(b.open, f.id)
		b.mu.Unlock()
	}
	return errors.Join(errs...)
}
