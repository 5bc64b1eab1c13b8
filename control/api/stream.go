package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Stream is one attachment to a process. Recv must be called by one goroutine at a time; the other methods are safe for
// concurrent use.
type Stream struct {
	Process Process // as it was at the start of the attachment

	ctx  context.Context
	stop func() bool // ends the watch on ctx
	conn io.ReadWriteCloser
	r    *frame.Reader

	mu sync.Mutex // serialises frames to the server
}

// newStream sends first as the first frame and reads the answer. It owns conn, also where it fails.
func newStream(ctx context.Context, conn io.ReadWriteCloser, first any) (*Stream, error) {
	s := &Stream{ctx: ctx, conn: conn, r: frame.NewReader(bufio.NewReaderSize(conn, 64<<10))}
	s.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err := s.sendJSON(frame.Request, first); err != nil {
		_ = s.Close()
		return nil, err
	}
	var resp ExecResponse
	err := s.r.ReadJSON(frame.Response, &resp)
	if err == nil && resp.Process == nil {
		err = errors.New("the answer names no process")
	}
	if err != nil {
		_ = s.Close()
		return nil, s.fault(err)
	}
	s.Process = *resp.Process
	return s, nil
}

// Recv returns the next frame: frame.Stdout, Stderr, PTY (see frame.Output), Dropped, or Exit, which is the last. Its
// payload is valid until the next Recv. io.ErrUnexpectedEOF means that the connection ended before Exit.
func (s *Stream) Recv() (frame.Frame, error) {
	f, err := s.r.Read()
	if err != nil {
		return frame.Frame{}, s.fault(err)
	}
	if f.Type == frame.Error {
		var body frame.ErrorBody
		if err := json.Unmarshal(f.Payload, &body); err != nil {
			return frame.Frame{}, fmt.Errorf("decode error frame: %w", err)
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
func (s *Stream) Close() error {
	s.stop()
	return s.conn.Close()
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
			if err := json.Unmarshal(f.Payload, &e); err != nil {
				return frame.ExitBody{}, fmt.Errorf("decode exit frame: %w", err)
			}
			return e, nil
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

// fault says why reading failed: because ctx ended, because of an Error frame, or because the connection broke.
func (s *Stream) fault(err error) error {
	if ctxErr := s.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	var body *frame.ErrorBody
	if errors.As(err, &body) {
		return streamError(body)
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// streamCodes maps the words of Error frames, which have no status of their own, to a status. Their words are kept.
var streamCodes = map[string]int{
	"bad_request":       http.StatusBadRequest,
	"version_mismatch":  http.StatusBadRequest,
	"process_not_found": http.StatusNotFound,
	"permission_denied": http.StatusForbidden,
	"already_exists":    http.StatusConflict,
	"limit_reached":     http.StatusTooManyRequests,
	CodeInvalid:         http.StatusBadRequest,
	CodeNotFound:        http.StatusNotFound,
	CodeCommand:         http.StatusBadRequest,
	CodeCwd:             http.StatusBadRequest,
	CodeUnknownUser:     http.StatusBadRequest,
	CodeNoSpace:         http.StatusInsufficientStorage,
	CodeNotRunning:      http.StatusConflict,
	CodeConflict:        http.StatusConflict,
	CodeUnavailable:     http.StatusServiceUnavailable,
}

func streamError(body *frame.ErrorBody) *Error {
	status, ok := streamCodes[body.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	return &Error{Code: status, ErrorCode: body.Code, Message: body.Message}
}
