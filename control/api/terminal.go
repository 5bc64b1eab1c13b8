package api

import (
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// TerminalID names a terminal: its sandbox's id, "-", and 20 random characters.
type TerminalID string

// TerminalRequest is the body of POST /v1/terminals.
type TerminalRequest struct {
	SandboxID SandboxID         `json:"sandbox_id"`
	Command   []string          `json:"command,omitempty"` // empty: a login shell, bash
	User      string            `json:"user,omitempty"`    // empty: the sandbox's default user
	Cwd       string            `json:"cwd,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	Size      frame.Size        `json:"size"` // in character cells; 0x0 means 80x24
}

// Terminal is a process with a terminal that clients attach to and leave. It lives as long as its process.
type Terminal struct {
	ID        TerminalID      `json:"terminal_id"`
	SandboxID SandboxID       `json:"sandbox_id"`
	PID       int             `json:"pid"`
	Command   []string        `json:"command"`
	User      string          `json:"user"`
	StartedAt time.Time       `json:"started_at"`
	Offset    uint64          `json:"offset"` // bytes of output so far
	Exit      *frame.ExitBody `json:"exit,omitempty"`
}

// TerminalTicket is the answer of POST /v1/terminals/{id}/ticket: what a browser, which cannot set headers there, opens one WebSocket with.
type TerminalTicket struct {
	Ticket    string    `json:"ticket"` // for the parameter of that name, once
	ExpiresAt time.Time `json:"expires_at"`
}

// TerminalMode says what an attachment may do.
type TerminalMode string

// The modes. Any number may read; any number may write unless one has the terminal for itself.
const (
	TerminalRead      TerminalMode = "read"
	TerminalWrite     TerminalMode = "write" // where nothing is said
	TerminalExclusive TerminalMode = "exclusive"
)

// TerminalControl is a text message on a terminal's WebSocket, as JSON. The terminal's bytes are binary messages: from the server 8 bytes
// of offset, big endian, of the first byte, then bytes; from the client bytes as they are typed.
type TerminalControl struct {
	Type string `json:"type"` // from the client "resize"; from the server "gap", "exit"

	Cols uint16 `json:"cols,omitempty"` // resize
	Rows uint16 `json:"rows,omitempty"`

	Bytes  uint64 `json:"bytes,omitempty"`  // gap: so many bytes before Offset are gone
	Offset uint64 `json:"offset,omitempty"` // gap

	Code   int  `json:"code"`             // exit
	Signal int  `json:"signal,omitempty"` // exit
	OOM    bool `json:"oom,omitempty"`    // exit: the kernel ended it for lack of memory
}

// Words of TerminalControl.Type.
const (
	TerminalResize = "resize"
	TerminalGap    = "gap"
	TerminalExit   = "exit"
)

// Close codes of a terminal's WebSocket, besides 1000 after the process's end and 1001 when the server stops.
const (
	TerminalBadMessage = 4000 // the client broke the protocol
	TerminalLost       = 4001 // the sandbox has ended, or its node is away
	TerminalReadOnly   = 4003 // input from a client that may only read
)
