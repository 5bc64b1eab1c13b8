package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Conn is a client's end of an HTTP/2 connection, which sends what no client would.
type h2Conn struct {
	net.Conn
	*http2.Framer
	t *testing.T
}

func dialH2(t *testing.T, addr string) *h2Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, http2.ClientPreface)
	must.NoError(t, err)
	c := &h2Conn{Conn: conn, Framer: http2.NewFramer(conn, conn), t: t}
	must.NoError(t, c.WriteSettings())
	return c
}

func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // a buffer takes all
	}
	return b.Bytes()
}

// request is the block of a good request, with more fields behind it.
func requestBlock(method, path string, more ...string) []byte {
	return block(append([]string{":method", method, ":scheme", "http", ":authority", "x", ":path", path, "x-api-key", keyA}, more...)...)
}

// end reads until a stream, or the connection, is over. It returns the status of the answer, or 0 and how it ended.
func (c *h2Conn) end(stream uint32) (status string, how error) {
	dec := hpack.NewDecoder(4096, nil)
	c.ReadMetaHeaders = dec
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "", err
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == stream {
				return f.PseudoValue("status"), nil
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == stream {
				return "", http2.StreamError{StreamID: stream, Code: f.ErrCode}
			}
		case *http2.GoAwayFrame:
			return "", http2.ConnectionError(f.ErrCode)
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = c.WriteSettingsAck()
			}
		}
	}
}

// C10 and N10 over HTTP/2: what is too large, too many, or no request at all, is refused, costs a bounded amount of memory, and leaves others alone.
func TestC10_hostileHTTP2(t *testing.T) {
	h := newHarness(t)
	addr, _, stop := startRun(t, h.srv)
	host := strings.TrimPrefix(addr, "http://")
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: transport}
	defer transport.CloseIdleConnections()
	others := func() {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+"/v2/sandboxes", nil)
		must.NoError(t, err)
		r.Header.Set("X-API-Key", keyA)
		resp, err := client.Do(r)
		must.NoError(t, err)
		_ = resp.Body.Close()
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, 2, resp.ProtoMajor)
	}
	others()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()

	t.Run("bodies", func(t *testing.T) {
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		_, err := io.CopyN(z, zeroes{}, 16<<20)
		must.NoError(t, err)
		must.NoError(t, z.Close())
		for _, c := range []struct {
			name, body, encoding string
			status               int
		}{
			{"16 MiB", `{"templateID":"` + strings.Repeat("x", 16<<20) + `"}`, "", 413},
			{"20000 levels", strings.Repeat(`{"metadata":`, 20_000), "", 400},
			{"a key twice", `{"templateID":"base","templateID":"base"}`, "", 400},
			{"a gzip bomb", bomb.String(), "gzip", 415},
		} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, addr+"/v2/sandboxes", strings.NewReader(c.body))
			must.NoError(t, err)
			r.Header.Set("X-API-Key", keyA)
			r.Header.Set("Content-Type", "application/json")
			if c.encoding != "" {
				r.Header.Set("Content-Encoding", c.encoding)
			}
			resp, err := client.Do(r)
			must.NoError(t, err, must.Sprint(c.name))
			_ = resp.Body.Close()
			must.Eq(t, c.status, resp.StatusCode, must.Sprint(c.name))
		}
		must.SliceEmpty(t, h.life.created)
	})

	for name, fields := range map[string][]string{
		"a field in capitals":         {"X-Upper", "v"},
		"a line break in a value":     {"x-a", "v\r\nx-api-key: " + keyB},
		"a connection's own field":    {"transfer-encoding", "chunked"},
		"another":                     {"connection", "keep-alive"},
		"a path twice":                {":path", "/v1/keys"},
		"a pseudo field nobody knows": {":tenant", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialH2(t, host)
			must.NoError(t, c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock("POST", "/v2/sandboxes", fields...), EndHeaders: true, EndStream: true}))
			status, how := c.end(1)
			must.True(t, how != nil || status == "400", must.Sprint(status, how))
		})
	}
	t.Run("no path", func(t *testing.T) {
		c := dialH2(t, host)
		must.NoError(t, c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":method", "GET", ":scheme", "http"), EndHeaders: true, EndStream: true}))
		_, how := c.end(1)
		must.Error(t, how)
	})
	t.Run("more than it said", func(t *testing.T) {
		c := dialH2(t, host)
		must.NoError(t, c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock("POST", "/v2/sandboxes", "content-length", "2"), EndHeaders: true}))
		must.NoError(t, c.WriteData(1, true, []byte(`{"templateID":"base"}`)))
		status, how := c.end(1)
		must.True(t, how != nil || status == "400", must.Sprint(status, how))
	})
	t.Run("100000 fields", func(t *testing.T) {
		c := dialH2(t, host)
		var err error
		first := requestBlock("GET", "/v2/sandboxes")
		err = c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true})
		for i := 0; err == nil && i < 1000; i++ {
			var more []string
			for n := range 100 {
				more = append(more, fmt.Sprintf("x-%d-%d", i, n), "v")
			}
			err = c.WriteContinuation(1, i == 999, block(more...))
		}
		status, how := c.end(1)
		must.True(t, err != nil || how != nil || status == "431", must.Sprint(status, how))
	})
	t.Run("fields without an end", func(t *testing.T) { // CVE-2023-45288
		c := dialH2(t, host)
		err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: requestBlock("GET", "/v2/sandboxes")})
		sent := 0
		some := bytes.Repeat(block("x-a", strings.Repeat("b", 4000)), 4)
		for ; err == nil && sent < 256<<20; sent += len(some) {
			err = c.WriteContinuation(1, false, some)
		}
		must.Error(t, err, must.Sprint("the connection must end"))
		must.Less(t, 64<<20, sent)
	})
	t.Run("streams that are given up at once", func(t *testing.T) { // CVE-2023-44487
		c := dialH2(t, host)
		var err error
		go func() { _, _ = io.Copy(io.Discard, c.Conn) }()
		for i := 0; err == nil && i < 10_000; i++ {
			id := uint32(2*i + 1) //nolint:gosec // small
			if err = c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: requestBlock("GET", "/v2/sandboxes"), EndHeaders: true, EndStream: true}); err == nil {
				err = c.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}
		others()
		must.Less(t, 5000, runtime.NumGoroutine(), must.Sprint("not one for each stream"))
		_ = c.Close()
	})
	t.Run("pings and settings without end", func(t *testing.T) {
		c := dialH2(t, host)
		must.NoError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
		must.NoError(t, c.Conn.(*net.TCPConn).SetReadBuffer(4096)) //nolint:forcetypeassert // dialled
		var many bytes.Buffer
		to := http2.NewFramer(&many, nil)
		for range 4096 {
			must.NoError(t, to.WritePing(false, [8]byte{}))
			must.NoError(t, to.WriteSettings())
		}
		var err error
		for i := 0; err == nil && i < 1000; i++ { // whose answers nobody reads
			_, err = c.Write(many.Bytes())
		}
		must.Error(t, err, must.Sprint("the connection must end, or nobody read from it any more"))
	})
	others()
	until := time.Now().Add(10 * time.Second)
	for heap() > before+32<<20 {
		must.True(t, time.Now().Before(until), must.Sprintf("memory grew from %d to %d KiB", before>>10, heap()>>10))
		time.Sleep(10 * time.Millisecond)
	}
	transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must.NoError(t, stop())
	must.NoError(t, ctx.Err())
}

// zeroes is a reader of zeroes.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
