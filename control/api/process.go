package api

import (
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// UpgradeProtocol is the protocol that exec and attach upgrade to: the frames of package frame. The client's first frame
// is frame.Request with the JSON of ExecRequest or AttachRequest; the server answers with frame.Response (ExecResponse) or
// frame.Error, then output until frame.Exit.
const UpgradeProtocol = "soulbox-frames/1"

// ProcessID names a process: its pid inside the sandbox.
type ProcessID int

// ExecRequest describes a process to start. Its JSON is what the sandbox's PID 1 takes, so that exec passes through every
// hop as it is.
type ExecRequest struct {
	Argv []string `json:"argv"`          // argv[0] is looked up in the process's PATH where it has no slash
	Env  []string `json:"env,omitempty"` // KEY=VALUE, on top of the sandbox's
	Cwd  string   `json:"cwd,omitempty"` // absolute, or relative to the user's home; empty: the default
	User string   `json:"user,omitempty"`

	TTY    bool        `json:"tty,omitempty"`    // a terminal instead of pipes
	Size   *frame.Size `json:"size,omitempty"`   // the terminal's first size; 80x24 where missing
	Stdin  bool        `json:"stdin,omitempty"`  // keep stdin open; else it is /dev/null
	Tag    string      `json:"tag,omitempty"`    // the caller's own name for it
	Attach bool        `json:"attach,omitempty"` // set by the client where it attaches
	// KillOnDetach kills the process's session when the connection ends before it does.
	KillOnDetach bool `json:"kill_on_detach,omitempty"`
}

// ExecResponse is the answer to the first frame of exec and attach.
type ExecResponse struct {
	Process *Process `json:"process,omitempty"`
}

// PlainExecRequest is the body of POST /v1/sandboxes/{id}/exec without an upgrade. The answer is newline-delimited JSON of
// ExecEvent.
type PlainExecRequest struct {
	ExecRequest
	Input []byte `json:"input,omitempty"` // all of stdin
}

// ExecEvent is one line of a plain exec's answer. Exactly one field is set.
type ExecEvent struct {
	Process *Process           `json:"process,omitempty"` // first line
	Stdout  []byte             `json:"stdout,omitempty"`
	Stderr  []byte             `json:"stderr,omitempty"`
	PTY     []byte             `json:"pty,omitempty"` // terminal output
	Dropped *frame.DroppedBody `json:"dropped,omitempty"`
	Exit    *frame.ExitBody    `json:"exit,omitempty"`  // last line
	Error   *Error             `json:"error,omitempty"` // last line, where the connection to the process broke
}

// AttachRequest names a process and the offsets to read on from. A negative offset means from now on.
type AttachRequest struct {
	PID    ProcessID `json:"pid"`
	Stdout int64     `json:"stdout,omitempty"` // also the offset of terminal output
	Stderr int64     `json:"stderr,omitempty"`
}

// Process is a process that a sandbox's PID 1 started.
type Process struct {
	PID       ProcessID       `json:"pid"`
	Argv      []string        `json:"argv"`
	Env       []string        `json:"env,omitempty"`
	Cwd       string          `json:"cwd"`
	User      string          `json:"user"`
	Tag       string          `json:"tag,omitempty"`
	TTY       bool            `json:"tty,omitempty"`
	StartedAt time.Time       `json:"started_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	Exit      *frame.ExitBody `json:"exit,omitempty"`
	Stdout    uint64          `json:"stdout"` // bytes produced so far; terminal output counts here
	Stderr    uint64          `json:"stderr"`
}

// SignalRequest is POST /v1/sandboxes/{id}/signal. PID 0 means its own command, or else all its processes.
type SignalRequest struct {
	PID    ProcessID `json:"pid,omitempty"`
	Signal int       `json:"signal"` // Linux signal number, 1 to 64
	Group  bool      `json:"group,omitempty"`
}

// StdinRequest is POST /v1/sandboxes/{id}/stdin: one write of at most frame.MaxData bytes, or the close, of a process's stdin.
type StdinRequest struct {
	PID   ProcessID `json:"pid"`
	Data  []byte    `json:"data,omitempty"`
	Close bool      `json:"close,omitempty"`
}

// ResizeRequest is POST /v1/sandboxes/{id}/resize.
type ResizeRequest struct {
	PID  ProcessID  `json:"pid"`
	Size frame.Size `json:"size"`
}
