package api

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// open returns a stream whose server is play.
func open(t *testing.T, ctx context.Context, play func(conn net.Conn, r *frame.Reader)) (*Stream, error) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		play(far, frame.NewReader(far))
	}()
	t.Cleanup(func() { _ = near.Close(); <-done })
	return newStream(ctx, near, ExecRequest{Argv: []string{"x"}})
}

func greet(conn net.Conn, r *frame.Reader) {
	var req ExecRequest
	_ = r.ReadJSON(frame.Request, &req)
	_ = frame.WriteJSON(conn, frame.Response, ExecResponse{Process: &Process{PID: 3, Argv: req.Argv}})
}

func TestStream_isSplitIntoFrames(t *testing.T) {
	got := make(chan int, 1)
	s, err := open(t, t.Context(), func(conn net.Conn, r *frame.Reader) {
		greet(conn, r)
		n := 0
		for {
			f, err := r.Read()
			if err != nil || f.Type == frame.StdinClose {
				break
			}
			if f.Type == frame.Stdin && len(f.Payload) <= frame.MaxData {
				n += len(f.Payload)
			}
		}
		got <- n
		_ = frame.WriteJSON(conn, frame.Exit, frame.ExitBody{Code: 4})
	})
	must.NoError(t, err)
	defer s.Close()
	must.Eq(t, ProcessID(3), s.Process.PID)
	n, err := s.Write(make([]byte, 3*frame.MaxData+1))
	must.NoError(t, err)
	must.Eq(t, 3*frame.MaxData+1, n)
	must.NoError(t, s.CloseStdin())
	exit, err := s.Copy(nil, nil)
	must.NoError(t, err)
	must.Eq(t, 4, exit.Code)
	must.Eq(t, n, <-got)
}

func TestStream_hostileServers(t *testing.T) {
	for name, tc := range map[string]struct {
		play func(conn net.Conn, r *frame.Reader)
		says string
	}{
		"closes": {func(net.Conn, *frame.Reader) {}, ""},
		"no process": {func(c net.Conn, r *frame.Reader) {
			_, _ = r.Read()
			_ = frame.WriteJSON(c, frame.Response, ExecResponse{})
		}, "names no process"},
		"wrong frame": {func(c net.Conn, r *frame.Reader) { _, _ = r.Read(); _ = frame.Write(c, frame.Stdout, []byte("x")) }, "got type"},
		"no JSON":     {func(c net.Conn, r *frame.Reader) { _, _ = r.Read(); _ = frame.Write(c, frame.Response, []byte("x")) }, "decode"},
		"huge frame":  {func(c net.Conn, r *frame.Reader) { _, _ = r.Read(); _, _ = c.Write([]byte{255, 255, 255, 255, 2}) }, "1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, t.Context(), tc.play)
			must.ErrorContains(t, err, tc.says)
		})
	}
	for name, write := range map[string]func(c net.Conn){
		"short output": func(c net.Conn) { _ = frame.Write(c, frame.Stdout, []byte("x")) },
		"exit no JSON": func(c net.Conn) { _ = frame.Write(c, frame.Exit, []byte("x")) },
		"error": func(c net.Conn) {
			_ = frame.WriteJSON(c, frame.Error, frame.ErrorBody{Code: CodeNotRunning, Message: "ended"})
		},
		"error JSON": func(c net.Conn) { _ = frame.Write(c, frame.Error, []byte("x")) },
		"cut":        func(c net.Conn) { _, _ = c.Write([]byte{0, 0, 0, 9, 32, 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			s, err := open(t, t.Context(), func(c net.Conn, r *frame.Reader) { greet(c, r); write(c) })
			must.NoError(t, err)
			defer s.Close()
			_, err = s.Copy(io.Discard, nil)
			must.Error(t, err)
			if name == "error" {
				must.Eq(t, 409, StatusOf(err))
			}
		})
	}
}

func TestStream_endsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, err := open(t, ctx, func(c net.Conn, r *frame.Reader) { greet(c, r); _, _ = r.Read() })
	must.NoError(t, err)
	defer s.Close()
	cancel()
	_, err = s.Recv()
	must.ErrorIs(t, err, context.Canceled)
}
