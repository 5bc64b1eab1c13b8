package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
)

// Transport carries requests over connections that are *Conn, and welcomes descriptors for what is at a path that ends with /files. It may be used by any
// number of requests at once.
type Transport struct{ Base *http.Transport }

// RoundTrip implements http.RoundTripper. The body of a response to GET may be a *File.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case !strings.HasSuffix(r.URL.Path, "/files"):
	case r.Method == http.MethodGet:
		return t.download(r)
	case r.Method == http.MethodPost && r.Body != nil && r.Body != http.NoBody && (r.ContentLength <= 0 || r.ContentLength >= MinBytes) &&
		r.Header.Get("Content-Encoding") == "":
		return t.upload(r)
	}
	return t.Base.RoundTrip(r)
}

// exchange is one request's connection.
type exchange struct {
	mu   sync.Mutex
	conn *Conn // guarded by mu
}

func (x *exchange) got(i httptrace.GotConnInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.conn, _ = i.Conn.(*Conn)
}

func (x *exchange) take() *os.File {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conn == nil {
		return nil
	}
	return x.conn.take()
}

// quiet hides what a context carries: an interim response that is for the transport is not for the trace of whoever passes a request on.
type quiet struct{ context.Context }

func (quiet) Value(any) any { return nil }

func (t Transport) download(r *http.Request) (*http.Response, error) {
	x := &exchange{}
	out := r.Clone(httptrace.WithClientTrace(quiet{r.Context()}, &httptrace.ClientTrace{GotConn: x.got}))
	out.Header.Set(Header, "download")
	resp, err := t.Base.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	resp.Request = r
	at := resp.Header.Get(Header)
	if at == "" {
		return resp, nil
	}
	resp.Header.Del(Header)
	b := &File{f: x.take()}
	if _, err := fmt.Sscan(at, &b.next, &b.left); err != nil || b.f == nil || b.left < 0 {
		if b.f != nil {
			_ = b.f.Close()
		}
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s %q without its descriptor", Header, at)
	}
	_ = resp.Body.Close() // it is empty
	resp.Body, resp.ContentLength = b, b.left
	resp.Header.Set("Content-Length", strconv.FormatInt(b.left, 10))
	return resp, nil
}

func (t Transport) upload(r *http.Request) (*http.Response, error) {
	x := &exchange{}
	body := &body{from: r.Body, settled: make(chan struct{}), closed: make(chan struct{})}
	out := r.Clone(httptrace.WithClientTrace(quiet{r.Context()}, &httptrace.ClientTrace{
		GotConn: x.got,
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			if limit, err := strconv.ParseInt(h.Get(Header), 10, 64); err == nil {
				body.settle(x.take(), limit)
			}
			return nil
		},
		Got100Continue: func() { body.settle(nil, 0) },
	}))
	out.Body, out.GetBody, out.ContentLength = body, nil, -1
	out.Header.Set(Header, "upload")
	out.Header.Set("Expect", "100-continue")
	resp, err := t.Base.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	resp.Request = r
	return resp, nil
}

// body is what is sent for an upload's body: that itself, or the outcome of writing it into a descriptor. It is read by one goroutine, and closed by any.
type body struct {
	from    io.ReadCloser
	once    sync.Once
	settled chan struct{} // closed when it is known which
	shut    sync.Once
	closed  chan struct{}

	into  *os.File    // set before settled closes; nil: the bytes are sent
	limit int64       // of into
	owned atomic.Bool // somebody has made it his to close into

	said []byte // the outcome, or what is left of it; nil: not yet
}

// settle says where the bytes go. The first call counts.
func (b *body) settle(into *os.File, limit int64) {
	b.once.Do(func() {
		b.into, b.limit = into, limit
		into = nil
		close(b.settled)
	})
	if into != nil {
		_ = into.Close()
	}
}

// Read implements io.Reader. Where there is a descriptor, the first call writes the whole body into it.
func (b *body) Read(p []byte) (int, error) {
	select {
	case <-b.settled:
	case <-b.closed:
	}
	select {
	case <-b.closed:
		return 0, http.ErrBodyReadAfterClose
	default:
	}
	if b.into == nil {
		return b.from.Read(p)
	}
	if b.said == nil {
		if !b.owned.CompareAndSwap(false, true) {
			return 0, http.ErrBodyReadAfterClose
		}
		o, err := fill(b.into, b.from, b.limit)
		// Before it is told: whoever starts the file then must not find it open for writing.
		if cerr := b.into.Close(); cerr != nil && o.Done {
			o = outcome{Errno: errnoOf(cerr)}
		}
		if err == nil {
			b.said, err = json.Marshal(o)
		}
		if err != nil {
			return 0, err
		}
	}
	if len(b.said) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.said)
	b.said = b.said[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.shut.Do(func() { close(b.closed) })
	b.settle(nil, 0)
	if b.into != nil && b.owned.CompareAndSwap(false, true) {
		_ = b.into.Close()
	}
	return b.from.Close()
}

// fill writes a body into f. The error is one of the body.
func fill(f *os.File, from io.Reader, limit int64) (outcome, error) {
	w := disk.NewWriter(f)
	err, werr := relay(from, func(p []byte) error {
		_, err := w.Write(p)
		return err
	}, limit)
	switch {
	case werr != nil:
		return outcome{Errno: errnoOf(werr)}, nil
	case errors.Is(err, errTooLong):
		return outcome{TooLong: true}, nil
	case err != nil:
		return outcome{}, err
	}
	if err := w.Finish(); err != nil {
		return outcome{Errno: errnoOf(err)}, nil
	}
	return outcome{Done: true}, nil
}

func errnoOf(err error) int {
	var e unix.Errno
	if errors.As(err, &e) {
		return int(e)
	}
	return int(unix.EIO)
}
