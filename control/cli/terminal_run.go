package cli

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/session"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// execTerminal starts a command on a terminal of the sandbox and joins it with this one.
func execTerminal(ctx context.Context, conn *connection, s *session.Session, req api.TerminalRequest) error {
	client, err := conn.client()
	if err != nil {
		return err
	}
	s.Screen = screenOf(conn.env)
	if size, ok := session.Size(s.Screen); ok {
		req.Size = size
	}
	if term := conn.env.Getenv("TERM"); term != "" && req.Env["TERM"] == "" {
		vars := map[string]string{"TERM": term}
		for k, v := range req.Env {
			vars[k] = v
		}
		req.Env = vars
	}
	t, err := client.CreateTerminal(ctx, req)
	if err != nil {
		return fmt.Errorf("exec in sandbox %s: %w", req.SandboxID, err)
	}
	return joinTerminal(ctx, conn, s, t.ID, 0, api.TerminalWrite)
}

// joinTerminal joins a terminal of a sandbox with this one until its process ends, or the user leaves it.
func joinTerminal(ctx context.Context, conn *connection, s *session.Session, id api.TerminalID, offset uint64, mode api.TerminalMode) error {
	client, err := conn.client()
	if err != nil {
		return err
	}
	// A signal ends this program until it is attached; from then on the session takes it.
	stream, err := client.AttachTerminal(ctx, id, offset, mode)
	if err != nil {
		return fmt.Errorf("attach to terminal %s: %w", id, err)
	}
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.Stream = &attached{ctx: live, s: stream}
	exit, err := s.RunThen(live, conn.release)
	var sig *session.SignalError
	back := fmt.Sprintf("It goes on. To come back: %s terminal attach %s", Name, id)
	switch {
	case errors.Is(err, session.ErrDetached):
		fmt.Fprintf(conn.env.Stderr, "\r\nLeft the terminal. %s\r\n", back)
		return nil
	case errors.As(err, &sig):
		fmt.Fprintf(conn.env.Stderr, "\r\n%s\r\n", back)
		return exitCode(128 + int(sig.Signal))
	case err != nil:
		return fmt.Errorf("terminal %s: %w", id, err)
	}
	return ended(conn.env, exit)
}

// attached is an attachment to a terminal as a session wants it.
type attached struct {
	ctx context.Context
	s   *api.TerminalStream
	buf []byte // of the last frame
}

var _ session.Stream = (*attached)(nil)

// Recv implements session.Stream.
func (a *attached) Recv() (frame.Frame, error) {
	e, err := a.s.Recv(a.ctx)
	switch {
	case err != nil:
		return frame.Frame{}, err
	case e.Exit != nil:
		return jsonFrame(frame.Exit, e.Exit)
	case e.Gap > 0:
		return jsonFrame(frame.Dropped, frame.DroppedBody{Bytes: e.Gap, Offset: e.Offset})
	}
	return outputFrame(frame.PTY, &a.buf, e.Offset, e.Data), nil
}

// outputFrame returns a frame of output, in a buffer that the next one uses again.
func outputFrame(t frame.Type, buf *[]byte, offset uint64, data []byte) frame.Frame {
	*buf = append(binary.BigEndian.AppendUint64((*buf)[:0], offset), data...)
	return frame.Frame{Type: t, Payload: *buf}
}

// Write implements session.Stream.
func (a *attached) Write(p []byte) (int, error) {
	if err := a.s.Write(a.ctx, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseStdin implements session.Stream: a terminal has no other end of input than the key for it.
func (a *attached) CloseStdin() error {
	_, err := a.Write([]byte{4}) // Ctrl-D
	return err
}

// Resize implements session.Stream.
func (a *attached) Resize(size frame.Size) error { return a.s.Resize(a.ctx, size) }

// Signal implements session.Stream: a terminal's process gets its signals by keys.
func (a *attached) Signal(int) error { return errors.ErrUnsupported }

// Close implements session.Stream.
func (a *attached) Close() error { return a.s.Close() }

func jsonFrame(t frame.Type, v any) (frame.Frame, error) {
	b, err := json.Marshal(v)
	return frame.Frame{Type: t, Payload: b}, err
}
