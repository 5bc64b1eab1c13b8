package edge

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// lentBody is a client's body while it is passed on. An answer may be over before all of it was read, and whoever passes it on may be in the middle
// of a read then; but the connection is the server's again once the request is served, and two must not read from it.
type lentBody struct {
	io.ReadCloser
	back  atomic.Bool
	over  atomic.Bool // it was read to its end
	mu    sync.Mutex  // held by a read
	ended error       // of the last read; guarded by mu
}

// Read implements io.Reader.
func (b *lentBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.back.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	b.ended = err
	b.over.Store(errors.Is(err, io.EOF))
	return n, err
}

// Close implements io.Closer. The proxy calls it before the request is over, while a read may wait for the client: takeBack is who ends that.
func (b *lentBody) Close() error { return nil }

// Lend prepares a request of a client for being passed on with its body: an answer may come before all of the body was read. giveBack is called when the
// answer is over; whole says that it was not broken off.
func Lend(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, giveBack func(whole bool)) {
	rc := http.NewResponseController(w)
	// Else the server ends the client's body when the answer begins. A server inside that answers before the last of it was passed on
	// would lose its connection, in the middle of the answer.
	_ = rc.EnableFullDuplex()
	if r.ProtoMajor != 1 || r.Body == nil || r.Body == http.NoBody {
		return w, func(bool) {}
	}
	body := &lentBody{ReadCloser: r.Body}
	r.Body = body
	return answerer{w, body}, func(whole bool) { body.takeBack(r.Context(), rc, whole) }
}

// How long the rest of a body that nobody wanted is read all the same: in all, and while nothing of it comes.
const (
	restTime = 10 * time.Second
	restIdle = 2 * time.Second
)

// answerer ends the connection with an answer that begins before the body was read: net/http may take the rest of one that it could not read for the
// next request, which is another's where a proxy is in front.
type answerer struct {
	http.ResponseWriter
	body *lentBody
}

// Unwrap implements http.ResponseController's way to what is behind.
func (a answerer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a answerer) WriteHeader(status int) {
	if status >= http.StatusOK && !a.body.over.Load() {
		a.Header().Set("Connection", "close")
	}
	a.ResponseWriter.WriteHeader(status)
}

// takeBack lets nobody read any more. Where the answer is whole it reads the rest: a connection that is closed with bytes unread is reset, and a client
// that is sending yet then loses the answer with it (RFC 9112, 9.6), so it gets the answer first, and time to see it. The rest must not be left to the
// server: in full duplex it would take the body's end for the begin of a wait for the client's going away, while it waits for the next request already.
// A client that sends for too long, and every one when ctx ends, loses its connection.
func (b *lentBody) takeBack(ctx context.Context, rc *http.ResponseController, whole bool) {
	b.back.Store(true)
	idle := time.Duration(0)
	if whole {
		idle = restIdle
		defer context.AfterFunc(ctx, func() { _ = rc.SetReadDeadline(time.Now()) })()
	}
	if !b.mu.TryLock() { // a read waits for the client
		_ = rc.SetReadDeadline(time.Now().Add(idle))
		if whole {
			_ = rc.Flush()
		}
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	if errors.Is(b.ended, io.EOF) {
		return
	}
	if whole && b.ended == nil {
		_ = rc.Flush()
		b.discard(ctx, rc)
	}
	if !errors.Is(b.ended, io.EOF) {
		_ = rc.SetReadDeadline(time.Now())
		return
	}
	_ = rc.SetReadDeadline(time.Time{})
}

// discard reads on to the body's end, for as long as that may take. b.mu is held.
func (b *lentBody) discard(ctx context.Context, rc *http.ResponseController) {
	rest := make([]byte, 32<<10)
	for end := time.Now().Add(restTime); b.ended == nil && ctx.Err() == nil && time.Now().Before(end); {
		_ = rc.SetReadDeadline(time.Now().Add(restIdle))
		_, b.ended = b.ReadCloser.Read(rest)
	}
}
