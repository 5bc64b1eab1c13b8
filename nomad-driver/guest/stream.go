package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Stream is an attachment to a process. One goroutine may call Recv while others write. Close it when done.
type Stream struct {
	conn    net.Conn
	process ProcessInfo
	r       *frame.Reader
	ended   bool // the Exit frame has been received

	mu sync.Mutex // one frame at a time is written
}

func newStream(conn net.Conn, p ProcessInfo) *Stream {
	return &Stream{conn: conn, process: p, r: frame.NewReader(conn)}
}

// Process returns what the guest said of the process when it was joined.
func (s *Stream) Process() ProcessInfo { return s.process }

// Conn returns the connection, which stands exactly between two frames until Recv is called: it can be spliced to another
// connection that speaks frames. Whoever splices it must not use the other methods except Close.
func (s *Stream) Conn() net.Conn { return s.conn }

// Recv returns the next frame of the process's output: Stdout, Stderr, PTY, Dropped, and last Exit; after that io.EOF. Its
// payload is valid until the next Recv. A guest that breaks the protocol gives an error that wraps ErrBadAnswer, an Error
// frame comes back as *frame.ErrorBody.
func (s *Stream) Recv() (frame.Frame, error) {
	if s.ended {
		return frame.Frame{}, io.EOF
	}
	f, err := s.r.Read()
	if err != nil {
		if errors.Is(err, frame.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrBadAnswer, err)
		}
		return frame.Frame{}, err
	}
	if err := checkOutput(f); err != nil {
		return frame.Frame{}, err
	}
	s.ended = f.Type == frame.Exit
	return f, nil
}

// checkOutput refuses what is no part of an attachment.
func checkOutput(f frame.Frame) error {
	switch f.Type {
	case frame.Stdout, frame.Stderr, frame.PTY:
		if _, data, err := frame.Output(f.Payload); err != nil {
			return fmt.Errorf("%w: %w", ErrBadAnswer, err)
		} else if len(data) > frame.MaxData {
			return fmt.Errorf("%w: output frame of %d bytes", ErrBadAnswer, len(data))
		}
		return nil
	case frame.Dropped:
		_, err := decode[frame.DroppedBody](f)
		return err
	case frame.Exit:
		_, err := ExitOf(f)
		return err
	case frame.Error:
		body, err := decode[frame.ErrorBody](f)
		if err != nil {
			return err
		}
		return checkError(&body)
	default:
		return fmt.Errorf("%w: frame type %d in an attachment", ErrBadAnswer, f.Type)
	}
}

// Write sends p to the process's stdin or terminal. It blocks while the process does not read.
func (s *Stream) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		k := min(len(p), frame.MaxData)
		if err := s.send(frame.Stdin, p[:k]); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}

// CloseStdin closes the process's stdin; a terminal gets its end-of-file character instead.
func (s *Stream) CloseStdin() error { return s.send(frame.StdinClose, nil) }

// Resize sets the terminal's size.
func (s *Stream) Resize(size frame.Size) error { return s.sendJSON(frame.Resize, size) }

// Signal signals the process.
func (s *Stream) Signal(number int) error {
	return s.sendJSON(frame.Signal, frame.SignalBody{Number: number})
}

// Close leaves the process.
func (s *Stream) Close() error { return s.conn.Close() }

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

// Output copies all that is left of a stream: stdout and terminal output to stdout, the rest to stderr, either of which may
// be nil. It returns how the process ended, and how many bytes were dropped before they could be read.
func (s *Stream) Output(stdout, stderr io.Writer) (exit frame.ExitBody, dropped uint64, err error) {
	for {
		f, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return frame.ExitBody{}, dropped, err
		}
		w := stdout
		switch f.Type {
		case frame.Exit:
			exit, err := ExitOf(f)
			return exit, dropped, err
		case frame.Dropped:
			d, err := decode[frame.DroppedBody](f)
			if err != nil {
				return frame.ExitBody{}, dropped, err
			}
			dropped += d.Bytes
			continue
		case frame.Stderr:
			w = stderr
		}
		if w == nil {
			continue
		}
		_, data, err := frame.Output(f.Payload)
		if err != nil {
			return frame.ExitBody{}, dropped, err
		}
		if _, err := w.Write(data); err != nil {
			return frame.ExitBody{}, dropped, err
		}
	}
}
