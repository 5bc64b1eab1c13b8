package handover

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"github.com/shoenig/test/wait"
	"golang.org/x/sys/unix"
)

// front is a server of plain TCP that passes uploads on to one that has their bodies written into f, limit bytes at most. straight counts what
// may go from the connection to the file by itself, ended has how each was filled.
type front struct {
	addr     string
	straight chan bool
	ended    chan error
}

func newFront(t *testing.T, f *os.File, limit int64) *front {
	t.Helper()
	fr := &front{straight: make(chan bool, 10), ended: make(chan error, 10)}
	back := serve(t, func(w http.ResponseWriter, r *http.Request) {
		err := Fill(r, f, limit)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		fr.ended <- err
	}, true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	srv := &http.Server{ConnContext: WithConn, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := Straight(r)
		fr.straight <- ctx != r.Context()
		out, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x/files", r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		out.ContentLength = r.ContentLength
		resp, err := back.Do(out)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(Listener{l}) }()
	t.Cleanup(func() {
		must.NoError(t, srv.Close())
		must.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	fr.addr = l.Addr().String()
	return fr
}

func (fr *front) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", fr.addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c, bufio.NewReader(c)
}

// post sends the header of a request and what is sent of its body, in pieces.
func post(t *testing.T, c net.Conn, header string, pieces ...[]byte) {
	t.Helper()
	_, err := fmt.Fprintf(c, "POST /files HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", header)
	must.NoError(t, err)
	for _, p := range pieces {
		_, err := c.Write(p)
		must.NoError(t, err)
	}
}

func answered(t *testing.T, r *bufio.Reader) int {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	must.NoError(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	must.NoError(t, err)
	must.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

func empty(t *testing.T, f *os.File) {
	t.Helper()
	must.NoError(t, f.Truncate(0))
	_, err := f.Seek(0, io.SeekStart)
	must.NoError(t, err)
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
	}
	return b
}

func TestInlet_theFileHasWhatWasSent(t *testing.T) {
	f := file(t, nil)
	appended, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_APPEND, 0) // a kernel refuses to splice into one
	must.NoError(t, err)
	defer appended.Close()
	for name, f := range map[string]*os.File{"spliced": f, "copied where the kernel does not splice": appended} {
		t.Run(name, func(t *testing.T) {
			fr := newFront(t, f, 64<<20)
			c, r := fr.dial(t)
			for _, n := range []int{MinBytes, MinBytes + 1, 3<<20 + 77, 16 << 20} { // on one connection
				must.NoError(t, f.Truncate(0))
				if f != appended {
					empty(t, f)
				}
				all := noise(n)
				post(t, c, fmt.Sprint("Content-Length: ", n), all[:n/3], all[n/3:n/3+1], all[n/3+1:])
				must.Eq(t, http.StatusOK, answered(t, r))
				must.NoError(t, <-fr.ended)
				must.True(t, <-fr.straight)
				b, err := os.ReadFile(f.Name())
				must.NoError(t, err)
				must.True(t, bytes.Equal(all, b), must.Sprint(n))
			}
		})
	}
}

func TestInlet_theNextRequestBeginsWhereTheBodyEnds(t *testing.T) {
	f := file(t, nil)
	fr := newFront(t, f, 64<<20)
	c, r := fr.dial(t)
	first, second := noise(1<<20), content(MinBytes)
	var both bytes.Buffer
	for _, b := range [][]byte{first, second} {
		fmt.Fprintf(&both, "POST /files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(both.Bytes())
		sent <- err
	}()
	for range 2 {
		must.Eq(t, http.StatusOK, answered(t, r))
		must.NoError(t, <-fr.ended)
	}
	must.NoError(t, <-sent)
	b, err := os.ReadFile(f.Name())
	must.NoError(t, err)
	must.True(t, bytes.Equal(append(first, second...), b))
}

func TestInlet_bodiesThatAreNotTheConnectionsBytesAreRead(t *testing.T) {
	f := file(t, nil)
	fr := newFront(t, f, 64<<20)
	c, r := fr.dial(t)
	all := noise(1 << 20)
	var chunks bytes.Buffer
	for rest := all; len(rest) > 0; rest = rest[min(100_000, len(rest)):] {
		p := rest[:min(100_000, len(rest))]
		fmt.Fprintf(&chunks, "%x\r\n%s\r\n", len(p), p)
	}
	chunks.WriteString("0\r\n\r\n")
	post(t, c, "Transfer-Encoding: chunked", chunks.Bytes())
	must.Eq(t, http.StatusOK, answered(t, r))
	must.False(t, <-fr.straight)
	must.NoError(t, <-fr.ended)
	b, err := os.ReadFile(f.Name())
	must.NoError(t, err)
	must.True(t, bytes.Equal(all, b))
}

func TestInlet_whatCannotBeWrittenIsTold(t *testing.T) {
	dir := smallDisk(t)
	full, err := os.Create(filepath.Join(dir, "f"))
	must.NoError(t, err)
	defer full.Close()
	for name, tc := range map[string]struct {
		f     *os.File
		limit int64
		want  error
	}{
		"a disk that is full": {full, 64 << 20, unix.ENOSPC},
		"more than may be":    {file(t, nil), 1 << 20, ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t, tc.f.Name())
			fr := newFront(t, tc.f, tc.limit)
			c, r := fr.dial(t)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				// The server may have closed the connection before the last of it.
				_, _ = fmt.Fprintf(c, "POST /files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", 4<<20, noise(4<<20))
			}()
			must.Eq(t, http.StatusBadRequest, answered(t, r))
			must.NoError(t, c.Close())
			<-sent
			must.ErrorIs(t, <-fr.ended, tc.want)
			must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { return descriptors(t, tc.f.Name()) == before }), wait.Timeout(10*time.Second)))
		})
	}
}

func TestInlet_aClientThatGoesAwayIsNeverComplete(t *testing.T) {
	f := file(t, nil)
	fr := newFront(t, f, 64<<20)
	c, _ := fr.dial(t)
	post(t, c, fmt.Sprint("Content-Length: ", 4<<20), noise(1<<20))
	must.NoError(t, c.Close())
	must.Error(t, <-fr.ended)
	must.Wait(t, wait.InitialSuccess(wait.BoolFunc(func() bool { return descriptors(t, f.Name()) == 1 }), wait.Timeout(10*time.Second)))
}
