package process

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// SendInput writes to a process's stdin or terminal. It returns when the process's pipe has taken all of it.
func (s *service) SendInput(ctx context.Context, req *connect.Request[wire.SendInputRequest]) (*connect.Response[wire.SendInputResponse], error) {
	p, err := find(ctx, req.Msg.GetProcess(), running)
	if err != nil {
		return nil, err
	}
	if err := input(ctx, p, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.SendInputResponse{}), nil
}

// StreamInput writes what comes to a process's stdin or terminal. The first event names the process.
func (s *service) StreamInput(ctx context.Context, in *connect.ClientStream[wire.StreamInputRequest]) (*connect.Response[wire.StreamInputResponse], error) {
	var p guest.ProcessInfo
	for in.Receive() {
		switch e := in.Msg().GetEvent().(type) {
		case *wire.StreamInputRequest_Start:
			var err error
			if p, err = find(ctx, e.Start.GetProcess(), running); err != nil {
				return nil, err
			}
		case *wire.StreamInputRequest_Data:
			if p.PID == 0 {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the first event must name the process"))
			}
			if err := input(ctx, p, e.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.StreamInputResponse{}), nil
}

// CloseStdin closes a process's stdin.
func (s *service) CloseStdin(ctx context.Context, req *connect.Request[wire.CloseStdinRequest]) (*connect.Response[wire.CloseStdinResponse], error) {
	p, err := find(ctx, req.Msg.GetProcess(), running)
	if err != nil {
		return nil, err
	}
	if p.TTY {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("a terminal has no stdin to close: send the end-of-file character to it"))
	}
	if err := scope.Of(ctx).Guest.Stdin(ctx, guest.StdinRequest{PID: p.PID, Close: true}); err != nil {
		return nil, failedInput(err)
	}
	return connect.NewResponse(&wire.CloseStdinResponse{}), nil
}

// input writes to a process in pieces that the guest takes.
func input(ctx context.Context, p guest.ProcessInfo, in *wire.ProcessInput) error {
	var data []byte
	switch v := in.GetInput().(type) {
	case *wire.ProcessInput_Stdin:
		if p.TTY {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal: its input is pty, not stdin"))
		}
		data = v.Stdin
	case *wire.ProcessInput_Pty:
		if !p.TTY {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("tty not assigned to process"))
		}
		data = v.Pty
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("input: stdin or pty is needed"))
	}
	for len(data) > 0 {
		n := min(len(data), frame.MaxData)
		if err := scope.Of(ctx).Guest.Stdin(ctx, guest.StdinRequest{PID: p.PID, Data: data[:n]}); err != nil {
			return failedInput(err)
		}
		data = data[n:]
	}
	return nil
}

// failedInput says that a process takes no input, which is its state and no mistake in the request.
func failedInput(err error) error {
	var body *frame.ErrorBody
	if errors.As(err, &body) && (body.Code == guest.CodeBadRequest || body.Code == guest.CodeNoProcess) {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("stdin not enabled or closed"))
	}
	return failed(err)
}
