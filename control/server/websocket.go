package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	closeTime   = 3 * time.Second // for a client to answer a close, whatever it sends meanwhile
	messageTime = 5 * time.Second // from the first frame of a message to its last
	pingSpan    = 10 * time.Second
	maxPings    = 100 // in pingSpan
)

// socket is a WebSocket whose client is not trusted to end anything: what the library would wait for without end is cut off.
type socket struct {
	*websocket.Conn
	raw *rawConn

	pings int
	since time.Time
	once  sync.Once
	work  sync.WaitGroup // closes that run beside the reader
}

// rawConn gets at the connection that the library takes over.
type rawConn struct {
	http.ResponseWriter
	conn net.Conn
}

func (r *rawConn) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *rawConn) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(r.ResponseWriter).Hijack()
	r.conn = conn
	return conn, rw, err
}

// acceptSocket upgrades a connection; a page of another origin is refused. On an error it has answered. The socket must be ended.
func acceptSocket(w http.ResponseWriter, r *http.Request) (*socket, error) {
	s := &socket{raw: &rawConn{ResponseWriter: w}}
	var err error
	s.Conn, err = websocket.Accept(s.raw, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled, OnPingReceived: s.ping})
	return s, err
}

// ping is called by whoever reads: it says whether a ping is answered. A client with nothing but pings is sent away.
func (s *socket) ping(context.Context, []byte) bool {
	if now := time.Now(); now.Sub(s.since) > pingSpan {
		s.pings, s.since = 0, now
	}
	s.pings++
	if s.pings == maxPings+1 {
		s.work.Go(func() { s.close(websocket.StatusPolicyViolation, "too many pings") })
	}
	return s.pings <= maxPings
}

// close says why, and waits a while for the client to agree. Only the first call counts.
func (s *socket) close(code websocket.StatusCode, reason string) {
	s.once.Do(func() {
		t := time.AfterFunc(closeTime, func() { _ = s.raw.conn.Close() })
		defer t.Stop()
		_ = s.Close(code, reason)
	})
}

// end closes the connection, and returns when nothing works for it any more.
func (s *socket) end() {
	_ = s.raw.conn.Close()
	_ = s.CloseNow()
	s.work.Wait()
}

// receive returns the next message, which must be whole in messageTime.
func (s *socket) receive(ctx context.Context) (websocket.MessageType, []byte, error) {
	kind, r, err := s.Reader(ctx)
	if err != nil {
		return 0, nil, err
	}
	s.work.Add(1)
	t := time.AfterFunc(messageTime, func() {
		defer s.work.Done()
		s.close(websocket.StatusPolicyViolation, "a message takes too long")
	})
	data, err := io.ReadAll(r)
	if t.Stop() {
		s.work.Done()
	}
	return kind, data, err
}
