package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// peer is a guest that answers every conversation with f.
func peer(t *testing.T, f func(c *net.UnixConn)) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "guest-")
	must.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := frame.NewReader(c).Read(); err == nil {
				f(c.(*net.UnixConn))
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return NewClient(path)
}

func sendFDs(c *net.UnixConn, v any, fds ...int) {
	var b bytes.Buffer
	_ = frame.WriteJSON(&b, frame.Response, v)
	_, _, _ = c.WriteMsgUnix(b.Bytes(), unix.UnixRights(fds...), nil)
}

func TestClient_open_checksTheDescriptor(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	must.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	must.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	open := func(name string, flags int) int {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		must.NoError(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	r, rw, p := open(path, unix.O_RDONLY), open(path, unix.O_RDWR), open(path, unix.O_PATH)
	fifo, null := open(filepath.Join(dir, "fifo"), unix.O_RDONLY|unix.O_NONBLOCK), open("/dev/null", unix.O_RDONLY)
	for _, c := range []struct {
		name string
		fds  []int
		ok   bool
	}{
		{"the right one", []int{r}, true},
		{"none", nil, false},
		{"two", []int{r, r}, false},
		{"many", []int{r, r, r, r, r, r, r, r}, false},
		{"more rights than asked for", []int{rw}, false},
		{"a path", []int{p}, false},
		{"a FIFO", []int{fifo}, false},
		{"a device", []int{null}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := countFDs(t)
			cl := peer(t, func(conn *net.UnixConn) { sendFDs(conn, Response{File: &FileInfo{Name: "f"}}, c.fds...) })
			f, _, err := cl.Open(t.Context(), FileRequest{Path: "f"})
			if c.ok {
				must.NoError(t, err)
				must.NoError(t, f.Close())
			} else {
				must.ErrorIs(t, err, ErrBadAnswer)
			}
			must.LessEq(t, before+3, countFDs(t)) // the test's own socket
		})
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must.NoError(t, err)
	return len(d)
}

func TestClient_hostileAnswers(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(c *net.UnixConn)
		want error
	}{
		{"too large", func(c *net.UnixConn) { c.Write([]byte{0xff, 0xff, 0xff, 0xff, byte(frame.Response)}) }, ErrBadAnswer},
		{"no JSON", func(c *net.UnixConn) { frame.Write(c, frame.Response, []byte("{")) }, ErrBadAnswer},
		{"another type", func(c *net.UnixConn) { frame.Write(c, frame.Stdout, []byte("{}")) }, ErrBadAnswer},
		{"nothing in it", func(c *net.UnixConn) { frame.WriteJSON(c, frame.Response, Response{}) }, ErrBadAnswer},
		{"a negative process", func(c *net.UnixConn) {
			frame.WriteJSON(c, frame.Response, Response{Process: &ProcessInfo{PID: -1}})
		}, ErrBadAnswer},
		{"silence", func(c *net.UnixConn) { buf := make([]byte, 1); c.Read(buf) }, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := peer(t, c.send).StartAttached(ctx, Start{Argv: []string{"x"}})
			must.ErrorIs(t, err, c.want)
		})
	}
	t.Run("an endless listing", func(t *testing.T) {
		cl := peer(t, func(c *net.UnixConn) {
			for i := 0; ; i++ {
				if frame.WriteJSON(c, frame.Response, Response{More: true, Files: []FileInfo{{Name: fmt.Sprint(i)}}}) != nil {
					return
				}
			}
		})
		_, err := cl.ReadDir(t.Context(), FileRequest{Path: "/"})
		must.ErrorIs(t, err, ErrBadAnswer)
	})
	t.Run("an escaping name", func(t *testing.T) {
		cl := peer(t, func(c *net.UnixConn) {
			frame.WriteJSON(c, frame.Response, Response{Files: []FileInfo{{Name: "../../etc"}}})
		})
		_, err := cl.ReadDir(t.Context(), FileRequest{Path: "/"})
		must.ErrorIs(t, err, ErrBadAnswer)
	})
	t.Run("a long error", func(t *testing.T) {
		cl := peer(t, func(c *net.UnixConn) {
			frame.WriteJSON(c, frame.Error, frame.ErrorBody{Code: "no such\ncode", Message: string(make([]byte, 100000))})
		})
		_, err := cl.Info(t.Context())
		var body *frame.ErrorBody
		must.True(t, errors.As(err, &body))
		must.Eq(t, CodeInternal, body.Code)
		must.Len(t, 4096, []byte(body.Message))
	})
}

// FuzzClient lets a hostile guest answer with any bytes.
func FuzzClient(f *testing.F) {
	var b bytes.Buffer
	_ = frame.WriteJSON(&b, frame.Response, Response{Process: &ProcessInfo{PID: 5}})
	_ = frame.WriteOutput(&b, frame.Stdout, 0, []byte("x"))
	_ = frame.WriteJSON(&b, frame.Dropped, frame.DroppedBody{Stream: frame.Stdout, Bytes: 1})
	_ = frame.WriteJSON(&b, frame.Exit, frame.ExitBody{Code: 1})
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 2, byte(frame.Error), '{', '}'})
	f.Fuzz(func(t *testing.T, in []byte) {
		a, z := net.Pipe()
		defer a.Close()
		go func() {
			_, _ = z.Write(in)
			z.Close()
		}()
		r, err := readResponse(frame.NewReader(a))
		if err != nil || r.Process == nil {
			return
		}
		s := newStream(a, *r.Process)
		var out bytes.Buffer
		exit, _, err := s.Output(&out, &out)
		if err == nil && (exit.Code < 0 || exit.Code > 255) {
			t.Errorf("exit %+v", exit)
		}
	})
}
