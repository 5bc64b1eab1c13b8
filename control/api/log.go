package api

import "time"

// LogEntry is one line of a sandbox's log: what one of its processes printed, or what the platform did with it.
type LogEntry struct {
	Time    time.Time         `json:"time"`
	Level   string            `json:"level"`  // debug, info, warn, error
	Source  string            `json:"source"` // stdout, stderr, pty, platform
	Message string            `json:"message"`
	Fields  map[string]string `json:"fields,omitempty"`
}

// SandboxLogs is the answer of GET /sandboxes/{id}/logs.
type SandboxLogs struct {
	Logs       []SandboxLog      `json:"logs"`
	LogEntries []SandboxLogEntry `json:"logEntries"`
}

// SandboxLog is an element of SandboxLogs.Logs: Line is JSON with level, logger, message and the entry's fields.
type SandboxLog struct {
	Timestamp time.Time `json:"timestamp"`
	Line      string    `json:"line"`
}

// SandboxLogEntry is an element of SandboxLogs.LogEntries and of GET /v2/sandboxes/{id}/logs.
type SandboxLogEntry struct {
	Timestamp time.Time         `json:"timestamp"`
	Message   string            `json:"message"`
	Level     string            `json:"level"`
	Fields    map[string]string `json:"fields"`
}

// SandboxLogsV2 is the answer of GET /v2/sandboxes/{id}/logs.
type SandboxLogsV2 struct {
	Logs []SandboxLogEntry `json:"logs"`
}
