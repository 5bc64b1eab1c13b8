package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"

	"connectrpc.com/connect"

	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Stream is one attachment to a process. Recv must be called by one goroutine at a time; the other methods are safe for
// concurrent use.
type Stream struct {
	PID ProcessID

	c      *Client
	tty    bool
	given  context.Context // the caller's: why the stream ended
	ctx    context.Context // of the stream: ends with given or Close. It has no deadline, which envd would kill the process at
	cancel context.CancelFunc
	calls  processconnect.ProcessClient

	next        func() (*wire.ProcessEvent, error)
	trailer     func() http.Header // once next has returned an error
	closeEvents func() error

	mu    sync.Mutex // serialises input
	input *connect.ClientStreamForClient[wire.StreamInputRequest, wire.StreamInputResponse]
}

func (c *Client) newStream(ctx context.Context, id SandboxID, h http.Header, tty bool) *Stream {
	s := &Stream{c: c, tty: tty, given: ctx, calls: c.processes(id, h)}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	s.ctx, s.cancel = own, func() { stop(); cancel() }
	return s
}

// follow makes events those of s.
func follow[R any, P interface {
	*R
	GetEvent() *wire.ProcessEvent
}](s *Stream, events *connect.ServerStreamForClient[R]) (*Stream, error) {
	s.next = func() (*wire.ProcessEvent, error) {
		if !events.Receive() {
			return nil, end(events.Err())
		}
		return P(events.Msg()).GetEvent(), nil
	}
	s.trailer = events.ResponseTrailer
	s.closeEvents = events.Close
	return s.begun()
}

// begun reads the first event, which names the process, or the reason why there is none.
func (s *Stream) begun() (*Stream, error) {
	e, err := s.next()
	if err == nil && e.GetStart() == nil {
		err = errors.New("the first event does not name the process")
	}
	if err != nil {
		err = s.fault(err)
		_ = s.Close()
		return nil, err
	}
	s.PID = ProcessID(e.GetStart().GetPid())
	return s, nil
}

// end is why a stream of events has no more.
func end(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Recv returns what the process did next. Exit is the last; io.ErrUnexpectedEOF means that the connection ended before it.
func (s *Stream) Recv() (ExecEvent, error) {
	for {
		e, err := s.next()
		if err != nil {
			return ExecEvent{}, s.fault(err)
		}
		switch e := e.GetEvent().(type) {
		case *wire.ProcessEvent_End:
			return ExecEvent{Exit: s.exit(e.End)}, nil
		case *wire.ProcessEvent_Data:
			switch out := e.Data.GetOutput().(type) {
			case *wire.ProcessEvent_DataEvent_Stdout:
				return ExecEvent{Stdout: out.Stdout}, nil
			case *wire.ProcessEvent_DataEvent_Stderr:
				return ExecEvent{Stderr: out.Stderr}, nil
			case *wire.ProcessEvent_DataEvent_Pty:
				return ExecEvent{PTY: out.Pty}, nil
			}
		}
	}
}

// exit says how the process ended. What the protocol has no number for comes behind the last event.
func (s *Stream) exit(e *wire.ProcessEvent_EndEvent) *frame.ExitBody {
	out := &frame.ExitBody{Code: int(e.GetExitCode())}
	_, _ = s.next() // the end of the stream, and with it the trailers
	t := s.trailer()
	out.OOM = t.Get(oomHeader) == "true"
	if n, err := strconv.Atoi(t.Get(signalHeader)); err == nil {
		out.Signal, out.Code = n, 128+n
	}
	return out
}

// Write writes p to the process's stdin or terminal.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.input == nil {
		s.input = s.calls.StreamInput(s.ctx)
		if err := s.input.Send(&wire.StreamInputRequest{Event: &wire.StreamInputRequest_Start{Start: &wire.StreamInputRequest_StartEvent{Process: selector(s.PID)}}}); err != nil {
			return 0, s.lost(err)
		}
	}
	n := 0
	for len(p) > 0 {
		chunk := p[:min(len(p), frame.MaxData)]
		in := &wire.ProcessInput{Input: &wire.ProcessInput_Stdin{Stdin: chunk}}
		if s.tty {
			in.Input = &wire.ProcessInput_Pty{Pty: chunk}
		}
		err := s.input.Send(&wire.StreamInputRequest{Event: &wire.StreamInputRequest_Data{Data: &wire.StreamInputRequest_DataEvent{Input: in}}})
		if err != nil {
			return n, s.lost(err)
		}
		n += len(chunk)
		p = p[len(chunk):]
	}
	return n, nil
}

// lost is why input is not taken any more. The answer to the call has the reason.
func (s *Stream) lost(err error) error {
	if errors.Is(err, io.EOF) {
		if _, cerr := s.input.CloseAndReceive(); cerr != nil {
			err = cerr
		}
	}
	return s.fault(err)
}

// CloseStdin closes the process's stdin, behind all that was written to it.
func (s *Stream) CloseStdin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.input != nil {
		if _, err := s.input.CloseAndReceive(); err != nil {
			return s.fault(err)
		}
		s.input = nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	_, err := s.calls.CloseStdin(ctx, connect.NewRequest(&wire.CloseStdinRequest{Process: selector(s.PID)}))
	return s.c.answered(s.given, err)
}

// Resize sets the terminal's size.
func (s *Stream) Resize(size frame.Size) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	_, err := s.calls.Update(ctx, connect.NewRequest(&wire.UpdateRequest{Process: selector(s.PID), Pty: terminal(size)}))
	return s.c.answered(s.given, err)
}

// Signal sends a Linux signal to the process and all of its group.
func (s *Stream) Signal(number int) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTime)
	defer cancel()
	_, err := s.calls.SendSignal(ctx, connect.NewRequest(&wire.SendSignalRequest{Process: selector(s.PID), Signal: wire.Signal(number)}))
	return s.c.answered(s.given, err)
}

// Close ends the attachment. The process goes on unless it was started with KillOnDetach.
func (s *Stream) Close() error {
	s.cancel() // first: closing a stream waits for what is still to come
	if s.closeEvents != nil {
		_ = s.closeEvents()
	}
	return nil
}

// Copy copies the output to stdout and stderr (nil: discarded) until the process ends.
func (s *Stream) Copy(stdout, stderr io.Writer) (frame.ExitBody, error) {
	for {
		e, err := s.Recv()
		if err != nil {
			return frame.ExitBody{}, err
		}
		w, data := stdout, e.Stdout
		switch {
		case e.Exit != nil:
			return *e.Exit, nil
		case e.Stderr != nil:
			w, data = stderr, e.Stderr
		case e.PTY != nil:
			data = e.PTY
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(data); err != nil {
			return frame.ExitBody{}, err
		}
	}
}

// fault says why the stream ended: because of ctx, of an answer, or because the connection broke.
func (s *Stream) fault(err error) error {
	if ctxErr := s.given.Err(); ctxErr != nil {
		return ctxErr
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	var said *connect.Error
	if errors.As(err, &said) {
		return s.c.callError(s.given, err)
	}
	return err
}
