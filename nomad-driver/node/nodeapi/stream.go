package nodeapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// The resources that upgrade to frames, for Client.Upgrade.
const (
	UpgradeExec   = "exec"
	UpgradeAttach = "attach"
)

// Upgrade opens an exec or attach conversation and returns the connection right after "101 Switching Protocols", before
// any frame: the caller sends the Request frame (JSON of ExecRequest or AttachRequest) itself, or splices another
// connection to it. The caller closes it. ctx counts until Upgrade returns.
func (c *Client) Upgrade(ctx context.Context, id api.SandboxID, resource string) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	rest, err := c.upgrade(ctx, conn, id, resource)
	if !stop() && err == nil {
		err = c.unreachable(ctx, ctx.Err())
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return rest, nil
}

func (c *Client) upgrade(ctx context.Context, conn net.Conn, id api.SandboxID, resource string) (net.Conn, error) {
	br, err := c.switchTo(ctx, conn, http.MethodPost, sandboxPath(id, "/"+resource), UpgradeProtocol)
	if err != nil {
		return nil, err
	}
	if br.Buffered() > 0 { // the server speaks only after our first frame
		return nil, c.unreachable(ctx, errors.New("bytes before the first frame"))
	}
	return conn, nil
}

// Exec starts a process and attaches to it. A process that cannot be started is an *api.Error here.
func (c *Client) Exec(ctx context.Context, id api.SandboxID, req ExecRequest) (*Stream, error) {
	return c.open(ctx, id, UpgradeExec, req)
}

// Attach joins a process that runs, or that ended and is still remembered.
func (c *Client) Attach(ctx context.Context, id api.SandboxID, req AttachRequest) (*Stream, error) {
	return c.open(ctx, id, UpgradeAttach, req)
}

func (c *Client) open(ctx context.Context, id api.SandboxID, resource string, req any) (*Stream, error) {
	conn, err := c.Upgrade(ctx, id, resource)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	s, err := NewStream(conn, req)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		var e *api.Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, c.unreachable(ctx, err)
	}
	return s, nil
}

// Stream is one attachment to a process. Recv must be called by one goroutine at a time; the other methods are safe for
// concurrent use.
type Stream struct {
	Process guest.ProcessInfo // as it was at the start of the attachment

	conn net.Conn
	r    *frame.Reader

	mu sync.Mutex // serialises frames to the server
}

// NewStream sends req as the first frame of a freshly upgraded connection and reads the answer. The connection belongs to
// the Stream when err is nil. An Error frame comes back as *api.Error.
func NewStream(conn net.Conn, req any) (*Stream, error) {
	if err := frame.WriteJSON(conn, frame.Request, req); err != nil {
		return nil, err
	}
	s := &Stream{conn: conn, r: frame.NewReader(bufio.NewReaderSize(conn, 64<<10))}
	var resp guest.Response
	if err := s.r.ReadJSON(frame.Response, &resp); err != nil {
		return nil, streamError(err)
	}
	if resp.Process == nil {
		return nil, errors.New("answer names no process")
	}
	s.Process = *resp.Process
	return s, nil
}

// Recv returns the next frame: Stdout, Stderr, PTY (see frame.Output), Dropped, or Exit, which is the last. Its payload is
// valid until the next Recv. io.ErrUnexpectedEOF means that the connection ended before Exit.
func (s *Stream) Recv() (frame.Frame, error) {
	f, err := s.r.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return frame.Frame{}, err
	}
	if f.Type == frame.Error {
		var body frame.ErrorBody
		if err := decodeFrame(f, &body); err != nil {
			return frame.Frame{}, err
		}
		return frame.Frame{}, streamError(&body)
	}
	return f, nil
}

// Write writes p to the process's stdin or terminal.
func (s *Stream) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		chunk := p[:min(len(p), frame.MaxData)]
		if err := s.send(frame.Stdin, chunk); err != nil {
			return n, err
		}
		n += len(chunk)
		p = p[len(chunk):]
	}
	return n, nil
}

// CloseStdin closes the process's stdin.
func (s *Stream) CloseStdin() error { return s.send(frame.StdinClose, nil) }

// Resize sets the terminal's size.
func (s *Stream) Resize(size frame.Size) error { return s.sendJSON(frame.Resize, size) }

// Signal sends a Linux signal to the process.
func (s *Stream) Signal(number int) error {
	return s.sendJSON(frame.Signal, frame.SignalBody{Number: number})
}

// Close ends the attachment. The process goes on unless it was started with KillOnDetach.
func (s *Stream) Close() error { return s.conn.Close() }

// Conn returns the connection, for deadlines.
func (s *Stream) Conn() net.Conn { return s.conn }

func (s *Stream) send(t frame.Type, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return frame.Write(s.conn, t, p)
}

func (s *Stream) sendJSON(t frame.Type, v any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return frame.WriteJSON(s.conn, t, v)
}

// Run execs a process, copies stdin (nil: none) into it and its output out (nil: discarded) until it ends. For a terminal
// all output goes to stdout. It ends the process, where req.KillOnDetach is set, when ctx ends.
func (c *Client) Run(ctx context.Context, id api.SandboxID, req ExecRequest, stdin io.Reader, stdout, stderr io.Writer) (frame.ExitBody, error) {
	req.Stdin = stdin != nil
	s, err := c.Exec(ctx, id, req)
	if err != nil {
		return frame.ExitBody{}, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if stdin != nil {
		go func() { // ends with stdin or with the stream; a Read that never returns is the caller's own
			if _, err := io.Copy(s, stdin); err == nil {
				_ = s.CloseStdin()
			}
		}()
	}
	exit, err := s.Copy(stdout, stderr)
	if ctx.Err() != nil {
		err = fmt.Errorf("node %s: %w", c.addr, ctx.Err())
	}
	return exit, err
}

// Copy copies the output to stdout and stderr (nil: discarded) until the process ends.
func (s *Stream) Copy(stdout, stderr io.Writer) (frame.ExitBody, error) {
	for {
		f, err := s.Recv()
		if err != nil {
			return frame.ExitBody{}, err
		}
		w := stdout
		switch f.Type {
		case frame.Exit:
			var e frame.ExitBody
			return e, decodeFrame(f, &e)
		case frame.Stderr:
			w = stderr
		case frame.Stdout, frame.PTY:
		default: // Dropped: a gap is no reason to stop
			continue
		}
		_, data, err := frame.Output(f.Payload)
		if err != nil {
			return frame.ExitBody{}, err
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(data); err != nil {
			return frame.ExitBody{}, err
		}
	}
}
