package api

import "time"

// Headers and trailers of bodies that are no JSON.
const (
	OffsetHeader = "SoulBox-Offset" // offset, in bytes of the stream, of the first byte of a log body
	ErrorTrailer = "SoulBox-Error"  // JSON of an Error that broke a body after its status was sent
)

// File is what a sandbox says of a file.
type File struct {
	Name     string            `json:"name"`
	Path     string            `json:"path"` // absolute, as resolved for the user
	Type     string            `json:"type"` // file, directory, symlink (one that leads nowhere), other
	Size     int64             `json:"size"`
	Mode     uint32            `json:"mode"` // permission bits
	Owner    string            `json:"owner"`
	Group    string            `json:"group"`
	ModTime  time.Time         `json:"mod_time"`
	Target   string            `json:"target,omitempty"` // of a symlink: where it leads to, absolute
	Metadata map[string]string `json:"metadata,omitempty"`
}

// FileOptions say as whom, and how, files are read and written.
type FileOptions struct {
	User string // of the sandbox; empty is its default user
	Mode uint32 // permission bits of a written file; 0: those of a file that exists, else 0644
}

// LogOptions choose what Client.Logs reads of the output of a sandbox's own command.
type LogOptions struct {
	Stream string // stdout (default, and terminal output) or stderr
	Offset int64  // first byte wanted; what is no longer kept is skipped
	Tail   int64  // where positive: only the last so many bytes, Offset does not count
	Follow bool   // stay until the command ends
}
