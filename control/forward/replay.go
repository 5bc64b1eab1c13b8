package forward

import (
	"io"
	"net/http"
	"sync"
)

// maxKept is how many bytes of a body are kept so that they can be sent again.
const maxKept = 256 << 10

// replay is a client's body that can be read more than once while its beginning is short enough to be kept.
type replay struct {
	mu     sync.Mutex // held by a read
	src    io.Reader
	kept   []byte
	cut    bool // more was read than is kept
	end    error
	newest *attempt
}

// again reports whether the body can be read from its beginning once more.
func (b *replay) again() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.cut
}

// attempt returns a reader from the beginning. Those before it read no more.
func (b *replay) attempt() *attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.newest = &attempt{body: b}
	return b.newest
}

// attempt is one reading of a body, by one sending of the request. One that is under way when the request is sent again ends with what it reads,
// which is kept for the next.
type attempt struct {
	body *replay
	at   int
}

// Read implements io.Reader.
func (a *attempt) Read(p []byte) (int, error) {
	b := a.body
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.newest != a {
		return 0, http.ErrBodyReadAfterClose
	}
	if a.at < len(b.kept) {
		n := copy(p, b.kept[a.at:])
		a.at += n
		return n, nil
	}
	if b.end != nil {
		return 0, b.end
	}
	n, err := b.src.Read(p)
	b.end = err
	if !b.cut && len(b.kept)+n <= maxKept {
		b.kept = append(b.kept, p[:n]...)
		a.at += n
	} else if n > 0 {
		b.cut = true // the first part stays, for nobody: this attempt is past it
		a.at = len(b.kept)
	}
	return n, err
}

// Close implements io.Closer. The body is its server's to close.
func (a *attempt) Close() error { return nil }
