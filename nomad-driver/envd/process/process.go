// Package process serves process.Process of the E2B contract: it starts processes and terminals in a sandbox, and carries
// their input and output.
//
// It owns the translation between that protocol and the guest's. The processes themselves belong to the sandbox's PID 1: they
// go on when a client leaves and when the node restarts, and nothing about them is kept here.
package process

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const (
	// maxMessage bounds one message from a client, in bytes.
	maxMessage = 16 << 20
	// keepExited is how long after its end a process can still be joined.
	keepExited = 30 * time.Second
	maxSignal  = 64 // signal(7)
)

// Config of the service. Everything may be missing.
type Config struct {
	// Started is called for every process that was started here, before its first output is sent.
	Started func(scope.Sandbox, guest.ProcessInfo)
}

type service struct {
	started func(scope.Sandbox, guest.ProcessInfo)
}

var _ processconnect.ProcessHandler = (*service)(nil)

// New returns the path of the service and its handler. Requests carry their sandbox in the context (package scope).
func New(cfg Config) (string, http.Handler) {
	s := &service{started: cfg.Started}
	if s.started == nil {
		s.started = func(scope.Sandbox, guest.ProcessInfo) {}
	}
	return processconnect.NewProcessHandler(s, connect.WithReadMaxBytes(maxMessage))
}

// List returns the processes that run.
func (s *service) List(ctx context.Context, _ *connect.Request[wire.ListRequest]) (*connect.Response[wire.ListResponse], error) {
	all, err := scope.Of(ctx).Guest.List(ctx)
	if err != nil {
		return nil, failed(err)
	}
	resp := &wire.ListResponse{}
	for _, p := range all {
		if p.Exit == nil {
			resp.Processes = append(resp.Processes, describe(p))
		}
	}
	return connect.NewResponse(resp), nil
}

// Update gives a terminal a new size.
func (s *service) Update(ctx context.Context, req *connect.Request[wire.UpdateRequest]) (*connect.Response[wire.UpdateResponse], error) {
	p, err := find(ctx, req.Msg.GetProcess(), running)
	if err != nil {
		return nil, err
	}
	if pty := req.Msg.GetPty(); pty != nil {
		size, err := sizeOf(pty)
		if err != nil {
			return nil, err
		}
		if !p.TTY {
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("tty not assigned to process"))
		}
		if err := scope.Of(ctx).Guest.Resize(ctx, p.PID, size); err != nil {
			return nil, failed(err)
		}
	}
	return connect.NewResponse(&wire.UpdateResponse{}), nil
}

// SendSignal sends a signal. What a shell has started gets it too: it goes to the whole group. The contract has names for two signals; the
// numbers of all others are ours.
func (s *service) SendSignal(ctx context.Context, req *connect.Request[wire.SendSignalRequest]) (*connect.Response[wire.SendSignalResponse], error) {
	p, err := find(ctx, req.Msg.GetProcess(), running)
	if err != nil {
		return nil, err
	}
	sig := req.Msg.GetSignal()
	if sig < 1 || sig > maxSignal {
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("signal: %d is not between 1 and %d", sig, maxSignal))
	}
	err = scope.Of(ctx).Guest.Signal(ctx, guest.SignalRequest{PID: p.PID, Signal: int(sig), Group: true})
	if err != nil {
		return nil, failed(err)
	}
	return connect.NewResponse(&wire.SendSignalResponse{}), nil
}

// describe says what a client may know of a process: its configuration as its start had it.
func describe(p guest.ProcessInfo) *wire.ProcessInfo {
	c := &wire.ProcessConfig{Envs: map[string]string{}}
	if len(p.Argv) > 0 {
		c.Cmd, c.Args = valid(p.Argv[0]), validAll(p.Argv[1:])
	}
	for _, e := range scope.Own(p.Env) {
		k, v := cut(e)
		c.Envs[valid(k)] = valid(v)
	}
	if p.AskedCwd != "" {
		cwd := valid(p.AskedCwd)
		c.Cwd = &cwd
	}
	info := &wire.ProcessInfo{Config: c, Pid: uint32(p.PID)}
	if p.Tag != "" {
		tag := valid(p.Tag)
		info.Tag = &tag
	}
	return info
}

// sizeOf checks a terminal's size.
func sizeOf(p *wire.PTY) (frame.Size, error) {
	cols, rows := p.GetSize().GetCols(), p.GetSize().GetRows()
	const most = 1<<16 - 1
	if cols == 0 || rows == 0 || cols > most || rows > most {
		return frame.Size{}, connect.NewError(connect.CodeInvalidArgument, errors.New("pty.size: cols and rows must be between 1 and 65535"))
	}
	return frame.Size{Cols: uint16(cols), Rows: uint16(rows)}, nil
}
