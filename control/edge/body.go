package edge

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// lentBody is a client's body while it is passed on. An answer may be over before all of it was read, and whoever passes it on may be in the middle
// of a read then; but the connection is the server's again once the request is served, and two must not read from it.
type lentBody struct {
	io.ReadCloser
	mu    sync.Mutex // held by a read
	ended bool       // guarded by mu
	back  bool       // guarded by mu
}

// Read implements io.Reader.
func (b *lentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.back {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	b.ended = b.ended || errors.Is(err, io.EOF)
	return n, err
}

// What of a body that nobody wanted is read all the same, so that its connection can be used again.
const (
	restBytes = 256 << 10
	restTime  = time.Second
)

// takeBack lets nobody read any more, and reads a rest that is small. A read that waits for the client is broken off, and the connection ends with the
// request. The rest must not be left to the server: in full duplex it would take the body's end for the begin of a wait for the client's going away,
// while it waits for the next request already.
func (b *lentBody) takeBack(rc *http.ResponseController) {
	waits := !b.mu.TryLock()
	if waits {
		_ = rc.SetReadDeadline(time.Now())
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	b.back = true
	if b.ended {
		return
	}
	if !waits {
		_ = rc.SetReadDeadline(time.Now().Add(restTime))
		if _, err := io.CopyN(io.Discard, b.ReadCloser, restBytes); errors.Is(err, io.EOF) {
			_ = rc.SetReadDeadline(time.Time{})
			return
		}
	}
	_ = rc.SetReadDeadline(time.Now())
}
