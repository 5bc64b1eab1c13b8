package files

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// Bounds of compressed bodies: beyond the slack a body that grows by more than the ratio is a bomb. The best that the format
// does is 1032, which only bytes that are all the same reach.
const (
	maxRatio   = 256
	ratioSlack = 64 << 20 // bytes
)

// bodyOf returns a request's body: with an idle timeout, decompressed, bounded. What it fails with is an *Error.
func (h handler) bodyOf(w http.ResponseWriter, r *http.Request) (io.Reader, error) {
	rc := http.NewResponseController(w)
	raw := &idleReader{r: r.Body, rc: rc, idle: h.IdleTimeout}
	switch enc := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); enc {
	case "", "identity":
		return &boundedReader{r: raw, limit: h.MaxBytes}, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(bufio.NewReaderSize(raw, 32<<10))
		if err != nil {
			return nil, badBody(err)
		}
		return &boundedReader{r: z, limit: h.MaxBytes, raw: raw}, nil
	default:
		return nil, fail(http.StatusUnsupportedMediaType, "unsupported content encoding '%.40s', supported: gzip, identity", enc)
	}
}

// idleReader gives up on a body of which nothing comes for the idle time.
type idleReader struct {
	r    io.Reader
	rc   *http.ResponseController
	idle time.Duration
	n    int64 // bytes read
}

func (i *idleReader) Read(p []byte) (int, error) {
	if err := i.rc.SetReadDeadline(time.Now().Add(i.idle)); err != nil {
		return 0, err
	}
	n, err := i.r.Read(p)
	i.n += int64(n)
	return n, err
}

// boundedReader ends with an error at its limit, or where what was decompressed is out of all proportion to raw.
type boundedReader struct {
	r     io.Reader
	raw   *idleReader
	n     int64
	limit int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.limit {
		return 0, tooLong(b.limit)
	}
	if b.raw != nil && b.n > ratioSlack && b.n/maxRatio > b.raw.n {
		return 0, fail(http.StatusRequestEntityTooLarge, "the compressed body grows to more than %d times its size", maxRatio)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = badBody(err)
	}
	return n, err
}

func tooLong(limit int64) *Error {
	return fail(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", limit)
}

// badBody says what is wrong with a body that could not be read to its end.
func badBody(err error) error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fail(http.StatusRequestTimeout, "nothing came of the body for too long")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fail(http.StatusBadRequest, "the body ended too early")
	}
	return &Error{Code: http.StatusBadRequest, Message: fmt.Sprintf("error reading the body: %v", err)}
}
