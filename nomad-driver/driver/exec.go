package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/proto"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// ExecTask runs a command for a script check or a template's script. Output beyond drivers.CheckBufSize is dropped.
func (d *Driver) ExecTask(taskID string, cmd []string, timeout time.Duration) (*drivers.ExecTaskResult, error) {
	id, err := d.known(taskID)
	if err != nil {
		return nil, err
	}
	if len(cmd) == 0 {
		return nil, errors.New("command is empty")
	}
	ctx, cancel := context.WithTimeout(d.ctx, timeout)
	defer cancel()
	node, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	stdout, stderr := &capped{max: drivers.CheckBufSize}, &capped{max: drivers.CheckBufSize}
	exit, err := node.Run(ctx, id, nodeapi.ExecRequest{Start: guest.Start{
		Argv: cmd, Attach: true, KillOnDetach: true,
	}}, nil, stdout, stderr)
	if err != nil {
		return nil, err
	}
	return &drivers.ExecTaskResult{
		Stdout: stdout.Bytes(), Stderr: stderr.Bytes(),
		ExitResult: &drivers.ExitResult{ExitCode: exit.Code, Signal: exit.Signal, OOMKilled: exit.OOM},
	}, nil
}

// capped keeps the first max bytes that are written to it.
type capped struct {
	bytes.Buffer
	max int
}

func (c *capped) Write(p []byte) (int, error) {
	if room := c.max - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// ExecTaskStreamingRaw is `nomad alloc exec`: it passes the API's messages and the sandbox's frames to each other.
func (d *Driver) ExecTaskStreamingRaw(ctx context.Context, taskID string, command []string, tty bool, stream drivers.ExecTaskStream) error {
	id, err := d.known(taskID)
	if err != nil {
		return err
	}
	if len(command) == 0 {
		return errors.New("command is empty")
	}
	node, err := d.connect(ctx)
	if err != nil {
		return err
	}
	start := guest.Start{Argv: command, TTY: tty, Stdin: true, Attach: true, KillOnDetach: true}
	if tty {
		start.Env = []string{"TERM=xterm-256color"}
	}
	s, err := node.Exec(ctx, id, nodeapi.ExecRequest{Start: start})
	if err != nil {
		var e *api.Error
		if errors.As(err, &e) && (e.ErrorCode == api.CodeCommand || e.ErrorCode == api.CodeCwd) {
			return sendFailure(stream, e)
		}
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	go input(stream, s) // ends when the API's side of the stream ends, which it does after this call returns
	return output(s, stream)
}

// sendFailure reports a command that could not be started as a shell would: on stderr, with exit code 127.
func sendFailure(stream drivers.ExecTaskStream, e *api.Error) error {
	err := stream.Send(&drivers.ExecTaskStreamingResponseMsg{
		Stderr: &proto.ExecTaskStreamingIOOperation{Data: []byte(e.Message + "\n")},
	})
	if err != nil {
		return err
	}
	return sendExit(stream, frame.ExitBody{Code: 127})
}

func input(stream drivers.ExecTaskStream, s *nodeapi.Stream) {
	for {
		msg, err := stream.Recv()
		if err != nil {
			// The client went away, or closed its side. A process that reads its stdin must see the end of it.
			if errors.Is(err, io.EOF) {
				_ = s.CloseStdin()
			} else {
				_ = s.Close()
			}
			return
		}
		switch {
		case msg.Stdin != nil && msg.Stdin.Close:
			err = s.CloseStdin()
		case msg.Stdin != nil:
			_, err = s.Write(msg.Stdin.Data)
		case msg.TtySize != nil:
			err = s.Resize(frame.Size{Cols: cells(msg.TtySize.Width), Rows: cells(msg.TtySize.Height)})
		}
		if err != nil {
			return
		}
	}
}

func cells(n int32) uint16 { return uint16(min(max(n, 0), 1<<16-1)) }

func output(s *nodeapi.Stream, stream drivers.ExecTaskStream) error {
	for {
		f, err := s.Recv()
		if err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		msg := &drivers.ExecTaskStreamingResponseMsg{}
		switch f.Type {
		case frame.Stdout, frame.PTY, frame.Stderr:
			_, data, err := frame.Output(f.Payload)
			if err != nil {
				return err
			}
			io := &proto.ExecTaskStreamingIOOperation{Data: data}
			if f.Type == frame.Stderr {
				msg.Stderr = io
			} else {
				msg.Stdout = io
			}
			if err := stream.Send(msg); err != nil {
				return err
			}
		case frame.Exit:
			var exit frame.ExitBody
			if err := json.Unmarshal(f.Payload, &exit); err != nil {
				return fmt.Errorf("exec: exit frame: %w", err)
			}
			return sendExit(stream, exit)
		}
	}
}

func sendExit(stream drivers.ExecTaskStream, exit frame.ExitBody) error {
	for _, msg := range []*drivers.ExecTaskStreamingResponseMsg{
		{Stdout: &proto.ExecTaskStreamingIOOperation{Close: true}},
		{Stderr: &proto.ExecTaskStreamingIOOperation{Close: true}},
		{Exited: true, Result: &proto.ExitResult{
			ExitCode: int32(exit.Code), Signal: int32(exit.Signal), OomKilled: exit.OOM,
		}},
	} {
		if err := stream.Send(msg); err != nil {
			return err
		}
	}
	return nil
}
