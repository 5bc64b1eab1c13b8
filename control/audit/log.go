package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Log is one server's audit log. It is safe for concurrent use. Open starts its two goroutines, Close ends them.
type Log struct {
	cfg  Config
	log  hclog.Logger
	id   LogID
	lock *os.File // held against a second process

	mu       sync.Mutex
	next     *batch // what the writer takes next
	space    space
	broken   error // why nothing can be written until a restart
	full     bool  // the last try to get room failed
	closed   bool
	state    position      // of the last durable event; its hash is the event's own
	moved    chan struct{} // closed after the next change of state
	segments []*segment    // in order; the last one is written to
	dropped  int           // notes that found no room
	repeats  repeats

	wake chan struct{} // holds one word while next is not empty

	// Of the writer alone.
	file    *os.File
	at      position // where the next record goes, and the hash that it follows
	scratch []byte

	heads heads

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// position is a place in the chain.
type position struct {
	index  uint64 // of the last event
	hash   Hash
	offset int64 // of the end of its record
	time   time.Time
}

// segment is a file of the log. Fields behind mu of Log, but for what never changes.
type segment struct {
	first   uint64
	created time.Time
	begin   int64 // offset of the first record
	prev    Hash  // of the event before the first

	size  int64  // of what is durable; for the last one it is the log's position
	last  uint64 // 0: it has no event yet, or it is not known before it is read
	marks []mark // of the current segment while it grows, of others once somebody asked
}

// batch is what becomes durable together.
type batch struct {
	buf  []byte // records, with room for what the writer fills in
	ends []int  // of each record in buf
	done chan struct{}
	err  error
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// ErrUnavailable is in the chain of every error of an event that could not be stored. It is an *api.Error with status 503.
var ErrUnavailable error = api.Errorf(http.StatusServiceUnavailable, api.CodeAudit, "the audit log cannot be written")

var errClosed = fmt.Errorf("%w: it is closed", ErrUnavailable)

// Ticket is the right to store one event, for which there is room already. Exactly one of Commit and Release is called, once.
type Ticket struct{ l *Log }

// Admit takes room for one event, before the change is made that it will tell of: a change that could not be recorded must not be
// made. vital is for what ends or deletes things: it may use the room that is kept for that. An error has ErrUnavailable in its chain.
func (l *Log) Admit(vital bool) (Ticket, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Ticket{l}, l.admit(vital)
}

func (l *Log) admit(vital bool) error {
	switch {
	case l.closed:
		return errClosed
	case l.broken != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, l.broken)
	}
	err := l.space.take(vital)
	if full := err != nil; full != l.full && !vital {
		if l.full = full; full {
			l.log.Error("no room for the audit log: changes are refused until there is", "error", err)
		} else {
			l.log.Info("there is room for the audit log again")
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Release gives the room back: nothing was changed, and nothing is recorded.
func (t Ticket) Release() {
	t.l.mu.Lock()
	defer t.l.mu.Unlock()
	t.l.space.release()
}

// Commit stores the event and returns once it is durable. It is not given up when a context ends: the disk answers.
func (t Ticket) Commit(e Event) error {
	e = clean(e)
	l := t.l
	l.mu.Lock()
	b, err := l.queue(&e)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	<-b.done
	return b.err
}

// Append is Admit and Commit.
func (l *Log) Append(e Event) error {
	t, err := l.Admit(false)
	if err != nil {
		return err
	}
	return t.Commit(e)
}

// Note stores an event without waiting: for what happened anyhow. Where there is no room it is counted, and the log says so later.
func (l *Log) Note(e Event) {
	e = clean(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(&e)
}

func (l *Log) note(e *Event) {
	if l.closed {
		return
	}
	if err := l.admit(false); err != nil {
		l.dropped++
		return
	}
	_, _ = l.queue(e) // counted, where the batch fails
}

// queue appends the event to the batch that the writer takes next. l.mu is held, and room was taken.
func (l *Log) queue(e *Event) (*batch, error) {
	l.space.release()
	if l.closed {
		return nil, errClosed
	}
	b := l.next
	start := len(b.buf)
	b.buf = append(b.buf, 0, 0, 0, 0)
	b.buf = appendEvent(b.buf, e)
	n := len(b.buf) - start - lengthBytes
	if n > maxBody { // the limits of clean do not let it come to that
		b.buf = b.buf[:start]
		return nil, fmt.Errorf("%w: an event of %d bytes", ErrUnavailable, n)
	}
	binary.BigEndian.PutUint32(b.buf[start:], uint32(n))
	b.buf = append(b.buf, make([]byte, hashBytes)...)
	b.ends = append(b.ends, len(b.buf))
	l.space.used += int64(len(b.buf) - start)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return b, nil
}

// write is the writer's goroutine: what came while it wrote is its next batch.
func (l *Log) write() {
	for range l.wake {
		l.mu.Lock()
		b := l.next
		l.next = newBatch()
		closed := l.closed
		broken := l.broken
		l.mu.Unlock()
		if len(b.ends) > 0 {
			if broken == nil {
				b.err = l.store(b)
			} else {
				b.err = fmt.Errorf("%w: %w", ErrUnavailable, broken)
			}
			l.finish(b)
		}
		if closed {
			return
		}
	}
}

// store links a batch into the chain and makes it durable.
func (l *Log) store(b *batch) error {
	if err := l.rotate(); err != nil {
		l.log.Warn("no new segment of the audit log yet", "error", err) // the old one takes more
	}
	now := l.cfg.Now().UTC()
	if now.Before(l.at.time) {
		now = l.at.time
	}
	p := l.at
	start := 0
	for _, end := range b.ends {
		body := b.buf[start+lengthBytes : end-hashBytes]
		p.index++
		patch(body, p.index, now)
		p.hash, l.scratch = chain(l.scratch, hashedEvent, p.hash, body)
		copy(b.buf[end-hashBytes:end], p.hash[:])
		start = end
	}
	p.offset, p.time = l.at.offset+int64(len(b.buf)), now
	_, err := l.file.WriteAt(b.buf, l.at.offset)
	if err == nil {
		if err = datasync(l.file); err == nil {
			l.at = p
			return nil
		}
		l.fail(err) // after a failed sync nobody knows what is on the disk
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if terr := l.file.Truncate(l.at.offset); terr != nil || !noRoom(err) {
		l.fail(errors.Join(err, terr))
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func (l *Log) fail(err error) {
	l.mu.Lock()
	l.broken = err
	l.mu.Unlock()
	l.log.Error("the audit log is broken: changes are refused until the server is restarted", "error", err)
}

// finish makes a batch known.
func (l *Log) finish(b *batch) {
	l.mu.Lock()
	l.space.used -= int64(len(b.buf))
	l.space.end = l.at.offset
	if b.err == nil {
		seg := l.segments[len(l.segments)-1]
		at := position{index: l.at.index - uint64(len(b.ends)), offset: l.at.offset - int64(len(b.buf))}
		start := 0
		for _, end := range b.ends {
			at.index++
			seg.note(at.index, at.offset+int64(start), l.at.time)
			start = end
		}
		seg.size, seg.last = l.at.offset, l.at.index
		l.state = l.at
		close(l.moved)
		l.moved = make(chan struct{})
	} else {
		l.dropped += len(b.ends)
	}
	l.mu.Unlock()
	close(b.done)
}

// Last returns the index and the hash of the last durable event.
func (l *Log) Last() (uint64, Hash) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.index, l.state.hash
}

// Wait returns once there is an event behind index, or with ctx's error.
func (l *Log) Wait(ctx context.Context, index uint64) error {
	for {
		l.mu.Lock()
		at, moved, closed := l.state.index, l.moved, l.closed
		l.mu.Unlock()
		if at > index {
			return nil
		}
		if closed {
			return errClosed
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
	}
}

// ID names this chain.
func (l *Log) ID() LogID { return l.id }

// Server is whose log it is.
func (l *Log) Server() string { return l.cfg.Server }

// tend is the goroutine that signs, retains, and tells of what was counted.
func (l *Log) tend(ctx context.Context) {
	sign := time.NewTicker(l.cfg.SignEvery)
	defer sign.Stop()
	repeat := time.NewTicker(l.cfg.RepeatEvery)
	defer repeat.Stop()
	retain := time.NewTicker(l.cfg.RetainEvery)
	defer retain.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sign.C:
			l.noteDropped()
			l.sign(ctx)
		case <-repeat.C:
			l.flushRepeats()
		case <-retain.C:
			l.retain(ctx)
		}
	}
}

// noteDropped tells of notes that were lost, once there is room again.
func (l *Log) noteDropped() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped == 0 || l.broken != nil {
		return
	}
	n := l.dropped
	l.dropped = 0
	e := clean(Event{Action: "audit.dropped", Resource: "audit", Result: ResultFailed, User: systemUser,
		Details: map[string]string{"events": fmt.Sprint(n), "why": "there was no room for them, and what they told of happened or was refused anyhow"}})
	before := l.dropped
	if l.note(&e); l.dropped > before {
		l.dropped += n - 1
	}
}

// systemUser is who does what no caller asked for.
const systemUser = "system:soulbox"

// Close stores what is on its way, signs the end of the chain where the signer answers, and ends.
func (l *Log) Close() error {
	l.flushRepeats()
	l.noteDropped()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.moved)
	l.moved = make(chan struct{})
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	l.cancel()
	l.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.SignTimeout)
	defer cancel()
	l.sign(ctx)
	return errors.Join(l.file.Close(), l.lock.Close())
}
