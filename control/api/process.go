package api

import "github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"

// ProcessID names a process: its pid inside the sandbox.
type ProcessID int

// ExecRequest describes a process to start.
type ExecRequest struct {
	Argv []string          // argv[0] is looked up in the process's PATH where it has no slash
	Env  map[string]string // on top of the sandbox's
	Cwd  string            // absolute, or relative to the user's home; empty: the default
	User string            // empty: the sandbox's default user

	TTY   bool       // a terminal instead of pipes
	Size  frame.Size // the terminal's first size; 80x24 where zero
	Stdin bool       // keep stdin open; else it is /dev/null
	Tag   string     // the caller's own name for it
	// KillOnDetach kills the process's session when the stream ends before it does.
	KillOnDetach bool
}

// AttachRequest names a process and the offsets to read on from. A negative offset means from now on.
type AttachRequest struct {
	PID    ProcessID
	Stdout int64 // also the offset of terminal output
	Stderr int64
}

// Process is a process that runs in a sandbox and was started from outside.
type Process struct {
	PID  ProcessID
	Argv []string
	Env  map[string]string // of its own
	Cwd  string            // as its start named it
	Tag  string
}

// ExecEvent is something that a process did. Exactly one field is set.
type ExecEvent struct {
	Stdout, Stderr, PTY []byte          // output
	Exit                *frame.ExitBody // its end, and that of the stream
}

// Headers by which a request to a sandbox's envd says more than the contract has words for.
const (
	// UserHeader names the user of the sandbox that a call acts as. The contract has it in the header Authorization, which may have the
	// credentials of the request.
	UserHeader = "Soulbox-User"

	modeHeader   = "Soulbox-Mode"
	offsetsOf    = "Soulbox-Offset"
	killHeader   = "Soulbox-Kill-On-Disconnect"
	wordHeader   = "Soulbox-Error"
	signalHeader = "Soulbox-Signal"
	oomHeader    = "Soulbox-Oom"
)
