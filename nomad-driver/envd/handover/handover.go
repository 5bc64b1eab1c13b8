// Package handover lets the service of the same machine have a sandbox's file itself, instead of its bytes: what crosses the node's unix socket is
// the descriptor, and the bytes go between the file and the client's connection without a stop.
//
// It owns how a descriptor travels beside an HTTP exchange, and the copying at the end that gets it. It never opens a file, and never decides who may
// have one: whoever answers a request has done both.
//
// The exchange: a request says with Header that a descriptor is welcome. Who answers may send it with an interim response (103, RFC 8297), once:
//
//   - for a download, before the final response, which has no body then: Header says from which byte on how many make it up;
//   - for an upload, before the request's body is read. The body then is not what the client sends but the outcome of writing that into the
//     descriptor. A server that reads the body without having sent one says so with 100 Continue, which is waited for, and gets the bytes.
package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Header says in a request that a descriptor is welcome, and in a response what it is good for: "<first byte> <number of bytes>" in a final one, the
// most bytes that may be written in an interim one.
const Header = "Soulbox-Handover"

// MinBytes is the least that is worth a descriptor.
const MinBytes = 256 << 10

type connKey struct{}

// WithConn returns the context of a connection's requests. It is for http.Server's ConnContext; connections that carry no descriptors are left out.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok {
		return context.WithValue(ctx, connKey{}, u)
	}
	return ctx
}

// Welcome reports whether the client of a request takes a descriptor. Nothing may have been answered yet.
func Welcome(r *http.Request) bool {
	_, ok := r.Context().Value(connKey{}).(*net.UnixConn)
	return ok && r.ProtoMajor == 1 && r.Header.Get(Header) != ""
}

// give sends f beside an interim response. The request must be Welcome.
func give(r *http.Request, f *os.File, value string) error {
	conn, ok := r.Context().Value(connKey{}).(*net.UnixConn)
	if !ok {
		return errors.New("the connection carries no descriptors")
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	head := []byte("HTTP/1.1 103 Early Hints\r\n" + Header + ": " + value + "\r\n\r\n")
	var n int
	var werr error
	err = raw.Control(func(fd uintptr) { n, _, werr = conn.WriteMsgUnix(head, unix.UnixRights(int(fd)), nil) })
	if err == nil {
		err = werr
	}
	if err == nil && n < len(head) {
		_, err = conn.Write(head[n:])
	}
	return err
}

// Offer gives n bytes of f from the byte first on as the body of a response with a status, whose other headers are in w, and answers.
func Offer(w http.ResponseWriter, r *http.Request, status int, f *os.File, first, n int64) error {
	if err := give(r, f, "download"); err != nil {
		return err
	}
	w.Header().Set(Header, fmt.Sprint(first, " ", n))
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
	return nil
}

// Fill has the client of a request write its body into f, limit bytes at most, and returns how that ended: an error with ENOSPC in its chain where f's
// disk is full, ErrTooLong beyond the limit, any other where the body did not come to its end.
func Fill(r *http.Request, f *os.File, limit int64) error {
	if err := give(r, f, strconv.FormatInt(limit, 10)); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxOutcome))
	if err != nil {
		return err
	}
	var o outcome
	if err := json.Unmarshal(b, &o); err != nil {
		return fmt.Errorf("outcome of a handover %.100q: %w", b, err)
	}
	switch {
	case o.TooLong:
		return ErrTooLong
	case o.Errno != 0:
		return fmt.Errorf("write: %w", unix.Errno(o.Errno))
	case !o.Done:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// ErrTooLong is a body with more bytes than its limit.
var ErrTooLong = errors.New("the body has more bytes than it may")

// maxOutcome bounds an outcome's JSON, in bytes.
const maxOutcome = 4 << 10

// outcome is how a body was written.
type outcome struct {
	Done    bool `json:"done"`
	TooLong bool `json:"too_long,omitempty"`
	Errno   int  `json:"errno,omitempty"` // of a write
}
