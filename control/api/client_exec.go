package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Exec starts a process and attaches to it. A process that cannot be started is an *Error here. The stream ends with ctx.
func (c *Client) Exec(ctx context.Context, id SandboxID, req ExecRequest) (*Stream, error) {
	req.Attach = true
	return c.open(ctx, id, "/exec", req)
}

// Attach joins a process that runs, or that ended and is still remembered. The stream ends with ctx.
func (c *Client) Attach(ctx context.Context, id SandboxID, req AttachRequest) (*Stream, error) {
	return c.open(ctx, id, "/attach", req)
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
			if _, err := io.Copy(s, stdin); err == nil {
				_ = s.CloseStdin()
			}
		}()
	}
	return s.Copy(stdout, stderr)
}

// StartProcess starts a process without attaching to it.
func (c *Client) StartProcess(ctx context.Context, id SandboxID, req ExecRequest) (Process, error) {
	var out Process
	return out, c.call(ctx, http.MethodPost, sandboxPath(id, "/processes"), nil, req, &out)
}

// Processes lists the processes of a sandbox that were started from outside, ended ones included for a while.
func (c *Client) Processes(ctx context.Context, id SandboxID) ([]Process, error) {
	var out []Process
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/processes"), nil, nil, &out)
}

// Signal signals a process, or the sandbox's own command, else all its processes, where req.PID is 0.
func (c *Client) Signal(ctx context.Context, id SandboxID, req SignalRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/signal"), nil, req, nil)
}

// Stdin writes to, or closes, the stdin of a process that nobody need be attached to.
func (c *Client) Stdin(ctx context.Context, id SandboxID, req StdinRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/stdin"), nil, req, nil)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, id SandboxID, req ResizeRequest) error {
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/resize"), nil, req, nil)
}

// open upgrades a connection and sends req as its first frame.
func (c *Client) open(ctx context.Context, id SandboxID, resource string, first any) (*Stream, error) {
	// The connection must outlive the answer's request context, and end with ctx all the same: newStream sees to that.
	req, err := c.request(ctx, http.MethodPost, sandboxPath(id, resource), nil, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", UpgradeProtocol)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		if resp.StatusCode/100 == 2 {
			return nil, Errorf(http.StatusBadGateway, CodeInternal, "%s does not upgrade to %s; is there a proxy in between?", c.addr, UpgradeProtocol)
		}
		return nil, c.answerError(resp)
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(resp.Header.Get("Upgrade"), UpgradeProtocol) {
		_ = resp.Body.Close()
		return nil, c.unreachable(ctx, fmt.Errorf("upgraded to %.40q, want %s", resp.Header.Get("Upgrade"), UpgradeProtocol))
	}
	s, err := newStream(ctx, conn, first)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return nil, err
		}
		return nil, c.unreachable(ctx, err)
	}
	return s, nil
}
