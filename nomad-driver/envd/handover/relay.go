package handover

import (
	"errors"
	"io"
	"sync"
)

// enough is how many bytes are written at once where so many are there: the sender goes on meanwhile, and would wait for a reader that waits for more.
const enough = 64 << 10

// ahead is how many pieces may be read and not written yet.
const ahead = 3

// errTooLong is the outcome of a relay that had more to read than it may.
var errTooLong = errors.New("more than the limit")

// relay reads until from ends and writes what it read, both at once from the second piece on: of a large upload each takes half of the time. write is called by one
// goroutine at a time, and none runs when relay returns. At most limit bytes are written. readErr is nil where from ended with io.EOF. After writeErr no more is read
// than the piece that was being read.
func relay(from io.Reader, write func([]byte) error, limit int64) (readErr, writeErr error) {
	total := int64(0)
	next := func(buf *[copyBytes]byte) (piece, error) {
		n := 0
		var err error
		for n < enough && err == nil {
			var k int
			k, err = from.Read(buf[n:])
			n += k
		}
		if total += int64(n); total > limit {
			return piece{buf, 0}, errTooLong
		}
		return piece{buf, n}, err
	}
	done := func(err error) error {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	p, err := next(getBuffer())
	if err != nil { // all there is
		defer putBuffer(p.buf)
		return done(err), write(p.bytes())
	}
	w := writer{write: write, todo: make(chan piece, ahead), done: make(chan *[copyBytes]byte, ahead), failed: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(w.run)
	defer func() {
		close(w.todo)
		wg.Wait()
		close(w.done)
		for buf := range w.done {
			putBuffer(buf)
		}
		writeErr = w.err
	}()
	for lent := 1; ; {
		w.todo <- p // never waits: there are no more pieces than it has room for
		if err != nil {
			return done(err), nil
		}
		var buf *[copyBytes]byte
		if lent < ahead {
			buf = getBuffer()
			lent++
		} else {
			buf = <-w.done
		}
		select {
		case <-w.failed:
			putBuffer(buf)
			return nil, nil
		default:
		}
		p, err = next(buf)
	}
}

// piece is what was read at once.
type piece struct {
	buf *[copyBytes]byte
	n   int
}

func (p piece) bytes() []byte { return p.buf[:p.n] }

// writer writes what comes until it fails. Each piece's buffer comes back.
type writer struct {
	write  func([]byte) error
	todo   chan piece
	done   chan *[copyBytes]byte
	failed chan struct{}
	err    error // whoever has waited for run may read it
}

func (w *writer) run() {
	for p := range w.todo {
		if w.err == nil {
			if w.err = w.write(p.bytes()); w.err != nil {
				close(w.failed)
			}
		}
		w.done <- p.buf
	}
}
