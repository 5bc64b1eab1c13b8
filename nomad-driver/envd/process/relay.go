package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	keepaliveHeader  = "Keepalive-Ping-Interval" // seconds
	keepaliveDefault = 90 * time.Second
	// endedWait is how long the break of a stream may precede the news that the whole sandbox has ended.
	endedWait = 3 * time.Second
	maxPTY    = 16 << 10 // bytes of terminal output in one event
)

// keepalive returns how often a client wants to hear from a quiet process.
func keepalive(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get(keepaliveHeader), 10, 31)
	if err != nil || n == 0 {
		return keepaliveDefault
	}
	return time.Duration(n) * time.Second
}

// relay sends the events of an attachment until its process has ended, and says in trailer how. It owns stream. When the client's deadline passes it
// returns CodeDeadlineExceeded; when the client leaves it returns, and the process goes on. When the sandbox ends it breaks
// the connection, since that is what tells a client to ask whether the sandbox still is.
func relay(ctx context.Context, stream *guest.Stream, every time.Duration, trailer http.Header, send func(*wire.ProcessEvent) error) error {
	defer stream.Close()
	defer context.AfterFunc(ctx, func() { stream.Close() })()

	s := &sender{send: send, every: every}
	if err := s.event(&wire.ProcessEvent{Event: &wire.ProcessEvent_Start{
		Start: &wire.ProcessEvent_StartEvent{Pid: uint32(stream.Process().PID)},
	}}); err != nil {
		return err
	}
	defer s.begin()()
	for {
		f, err := stream.Recv()
		if err != nil {
			return broken(ctx, err)
		}
		switch f.Type {
		case frame.Exit:
			var e frame.ExitBody
			if err := json.Unmarshal(f.Payload, &e); err != nil {
				return connect.NewError(connect.CodeInternal, fmt.Errorf("exit of the process: %w", err))
			}
			if d, ok := ctx.Deadline(); ok && e.Signal == int(syscall.SIGKILL) && !time.Now().Before(d) {
				return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process was killed at the request's deadline"))
			}
			if e.Signal != 0 {
				trailer.Set(SignalTrailer, strconv.Itoa(e.Signal))
			}
			if e.OOM {
				trailer.Set(OOMTrailer, "true")
			}
			return s.event(&wire.ProcessEvent{Event: &wire.ProcessEvent_End{End: endOf(e)}})
		case frame.Stdout, frame.Stderr, frame.PTY:
			_, data, err := frame.Output(f.Payload)
			if err != nil {
				return connect.NewError(connect.CodeInternal, err)
			}
			if err := s.data(f.Type, data); err != nil {
				return err
			}
		}
	}
}

// broken says why the events of a process ended before the process.
func broken(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process was killed at the request's deadline"))
	case ctx.Err() != nil:
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	}
	t := time.NewTimer(endedWait)
	defer t.Stop()
	select {
	case <-scope.Of(ctx).Ended:
		panic(http.ErrAbortHandler)
	case <-ctx.Done():
		return connect.NewError(connect.CodeCanceled, ctx.Err())
	case <-t.C:
	}
	return failed(err)
}

// endOf says how a process ended.
func endOf(e frame.ExitBody) *wire.ProcessEvent_EndEvent {
	if e.Signal != 0 {
		status := "signal: " + syscall.Signal(e.Signal).String()
		return &wire.ProcessEvent_EndEvent{ExitCode: -1, Status: status, Error: &status}
	}
	end := &wire.ProcessEvent_EndEvent{ExitCode: int32(e.Code), Exited: true, Status: "exit status " + strconv.Itoa(e.Code)}
	if e.Code != 0 {
		end.Error = &end.Status
	}
	return end
}

// sender sends one event at a time, and a sign of life where none was sent for a while.
type sender struct {
	send  func(*wire.ProcessEvent) error
	every time.Duration

	mu    sync.Mutex
	last  time.Time
	err   error // of the first event that could not be sent
	over  bool
	timer *time.Timer
}

func (s *sender) event(e *wire.ProcessEvent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.locked(e)
}

func (s *sender) locked(e *wire.ProcessEvent) error {
	if s.err == nil {
		s.last = time.Now()
		s.err = s.send(e)
	}
	return s.err
}

func (s *sender) data(t frame.Type, p []byte) error {
	d := &wire.ProcessEvent_DataEvent{}
	e := &wire.ProcessEvent{Event: &wire.ProcessEvent_Data{Data: d}}
	switch t {
	case frame.Stdout:
		d.Output = &wire.ProcessEvent_DataEvent_Stdout{Stdout: p}
	case frame.Stderr:
		d.Output = &wire.ProcessEvent_DataEvent_Stderr{Stderr: p}
	default:
		for len(p) > maxPTY {
			d.Output = &wire.ProcessEvent_DataEvent_Pty{Pty: p[:maxPTY]}
			if err := s.event(e); err != nil {
				return err
			}
			p = p[maxPTY:]
		}
		d.Output = &wire.ProcessEvent_DataEvent_Pty{Pty: p}
	}
	return s.event(e)
}

// begin starts the signs of life; what it returns ends them and must be called before the handler returns.
func (s *sender) begin() (end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.every, s.beat)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.over = true
		s.timer.Stop()
	}
}

func (s *sender) beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.err != nil {
		return
	}
	next := s.every - time.Since(s.last)
	if next <= 0 {
		_ = s.locked(&wire.ProcessEvent{Event: &wire.ProcessEvent_Keepalive{Keepalive: &wire.ProcessEvent_KeepAlive{}}})
		next = s.every
	}
	s.timer.Reset(next)
}
