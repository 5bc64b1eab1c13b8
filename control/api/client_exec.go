package api

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Exec starts a process and attaches to it. A process that cannot be started is an *Error here. The stream ends with ctx.
func (c *Client) Exec(ctx context.Context, id SandboxID, req ExecRequest) (*Stream, error) {
	if len(req.Argv) == 0 {
		return nil, Errorf(http.StatusBadRequest, CodeInvalid, "argv is empty")
	}
	h := asUser(req.User)
	if req.KillOnDetach {
		h.Set(killHeader, "true")
	}
	start := &wire.StartRequest{
		Process: &wire.ProcessConfig{Cmd: req.Argv[0], Args: req.Argv[1:], Envs: req.Env},
		Stdin:   &req.Stdin,
	}
	if req.Cwd != "" {
		start.Process.Cwd = &req.Cwd
	}
	if req.Tag != "" {
		start.Tag = &req.Tag
	}
	if req.TTY {
		size := req.Size
		if size == (frame.Size{}) {
			size = frame.Size{Cols: 80, Rows: 24}
		}
		start.Pty = terminal(size)
	}
	s := c.newStream(ctx, id, h, req.TTY)
	events, err := s.calls.Start(s.ctx, connect.NewRequest(start))
	if err != nil {
		s.cancel()
		return nil, c.callError(ctx, err)
	}
	return follow(s, events)
}

// Attach joins a process that runs, or that has ended within the last 30 seconds. The stream ends with ctx.
func (c *Client) Attach(ctx context.Context, id SandboxID, req AttachRequest) (*Stream, error) {
	h := http.Header{}
	if req.Stdout >= 0 {
		h.Add(offsetsOf, fmt.Sprintf("stdout=%d", req.Stdout))
	}
	if req.Stderr >= 0 {
		h.Set(offsetsOf, join(h.Get(offsetsOf), fmt.Sprintf("stderr=%d", req.Stderr)))
	}
	s := c.newStream(ctx, id, h, false)
	events, err := s.calls.Connect(s.ctx, connect.NewRequest(&wire.ConnectRequest{Process: selector(req.PID)}))
	if err != nil {
		s.cancel()
		return nil, c.callError(ctx, err)
	}
	return follow(s, events)
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "," + b
}

// Run execs a process, copies stdin (nil: none) into it and its output out (nil: discarded) until it ends. For a terminal
// all output goes to stdout.
func (c *Client) Run(ctx context.Context, id SandboxID, req ExecRequest, stdin io.Reader, stdout, stderr io.Writer) (frame.ExitBody, error) {
	req.Stdin = stdin != nil
	s, err := c.Exec(ctx, id, req)
	if err != nil {
		return frame.ExitBody{}, err
	}
	defer s.Close()
	if stdin != nil {
		go func() { // ends with stdin or with the stream; a Read that never returns is the caller's own
			if _, err := io.CopyBuffer(struct{ io.Writer }{s}, stdin, make([]byte, 256<<10)); err == nil {
				_ = s.CloseStdin()
			}
		}()
	}
	return s.Copy(stdout, stderr)
}

// StartProcess starts a process without staying attached to it.
func (c *Client) StartProcess(ctx context.Context, id SandboxID, req ExecRequest) (ProcessID, error) {
	if req.KillOnDetach {
		return 0, Errorf(http.StatusBadRequest, CodeInvalid, "kill_on_detach: nobody stays attached to this process")
	}
	s, err := c.Exec(ctx, id, req)
	if err != nil {
		return 0, err
	}
	return s.PID, s.Close()
}

// Processes lists the processes of a sandbox that run and were started from outside.
func (c *Client) Processes(ctx context.Context, id SandboxID) ([]Process, error) {
	resp, err := c.processes(id, nil).List(ctx, connect.NewRequest(&wire.ListRequest{}))
	if err != nil {
		return nil, c.callError(ctx, err)
	}
	out := make([]Process, 0, len(resp.Msg.GetProcesses()))
	for _, p := range resp.Msg.GetProcesses() {
		out = append(out, Process{
			PID: ProcessID(p.GetPid()), Argv: append([]string{p.GetConfig().GetCmd()}, p.GetConfig().GetArgs()...),
			Env: p.GetConfig().GetEnvs(), Cwd: p.GetConfig().GetCwd(), Tag: p.GetTag(),
		})
	}
	return out, nil
}

// Signal sends a Linux signal to a process and all of its group.
func (c *Client) Signal(ctx context.Context, id SandboxID, pid ProcessID, number int) error {
	_, err := c.processes(id, nil).SendSignal(ctx, connect.NewRequest(&wire.SendSignalRequest{Process: selector(pid), Signal: wire.Signal(number)}))
	return c.answered(ctx, err)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, id SandboxID, pid ProcessID, size frame.Size) error {
	_, err := c.processes(id, nil).Update(ctx, connect.NewRequest(&wire.UpdateRequest{Process: selector(pid), Pty: terminal(size)}))
	return c.answered(ctx, err)
}

func (c *Client) answered(ctx context.Context, err error) error {
	if err != nil {
		return c.callError(ctx, err)
	}
	return nil
}

func selector(pid ProcessID) *wire.ProcessSelector {
	return &wire.ProcessSelector{Selector: &wire.ProcessSelector_Pid{Pid: uint32(pid)}}
}

func terminal(size frame.Size) *wire.PTY {
	return &wire.PTY{Size: &wire.PTY_Size{Cols: uint32(size.Cols), Rows: uint32(size.Rows)}}
}

// callTime bounds a call beside a stream, whose own context has no end.
const callTime = time.Minute
