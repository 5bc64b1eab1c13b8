// Package guest is the protocol between a node and the PID 1 of a sandbox, and the node's client for it.
//
// It owns the words of that protocol. What PID 1 does with them is package pid1; how a sandbox's world is set up before
// PID 1 serves is package boot. It imports the standard library and golang.org/x/sys only, never a package of the node or
// of the control service: everything here may end up inside a sandbox.
//
// One connection to the guest socket is one conversation: a Request frame, a Response or Error frame, and for
// OpStart with Attach and for OpAttach the frames of an attachment until Exit. The peer is hostile: everything that
// arrives from a sandbox is bounded and checked by the client.
package guest

import (
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// ProtocolVersion is the version that this code speaks. A guest serves every version from MinProtocolVersion on, because
// sandboxes outlive upgrades of the node.
const (
	ProtocolVersion    = 1
	MinProtocolVersion = 1
)

// ProcessID names a process that PID 1 started: its pid in the sandbox's pid namespace.
type ProcessID int

// Op is what a Request asks for.
type Op string

// The operations.
const (
	OpInfo       Op = "info"        // → Response.Info
	OpStart      Op = "start"       // Start → Response.Process; attachment follows where Start.Attach is set
	OpAttach     Op = "attach"      // Attach → Response.Process, then the attachment
	OpSignal     Op = "signal"      // Signal
	OpStdin      Op = "stdin"       // Stdin: one write to, or the close of, a process's stdin or terminal
	OpResize     Op = "resize"      // Resize
	OpWait       Op = "wait"        // Wait → Response.Process with Exit set, once it has ended
	OpList       Op = "list"        // → Response.Processes
	OpOpen       Op = "open"        // File → Response.File and one descriptor (SCM_RIGHTS)
	OpStat       Op = "stat"        // File → Response.File
	OpReadDir    Op = "readdir"     // File → Response.Files, lexical order, at most MaxDirEntries
	OpMkdir      Op = "mkdir"       // File → Response.File; parents are made too where File.Parents is set
	OpRemove     Op = "remove"      // File; recursive; a missing path is no error
	OpRename     Op = "rename"      // File.Path → File.Target
	OpSymlink    Op = "symlink"     // File.Path is made a link to File.Target
	OpEntry      Op = "entry"       // File → Response.Entry: links are followed, metadata comes along
	OpWalk       Op = "walk"        // File → Response.Entries: a directory down to File.Depth, at most MaxEntries
	OpRead       Op = "read"        // File → Response.Data: a file of at most MaxRead bytes, read inside
	OpWatch      Op = "watch"       // Watch → Response, then Events frames until either side closes
	OpLookupUser Op = "lookup_user" // User → Response.User
	OpPark       Op = "park"        // ends every other conversation, without what their end would mean → Response
	OpRenew      Op = "renew"       // Renew → Response and an unbound socket (SCM_RIGHTS); a Request frame when it listens → Response
	OpSetEnv     Op = "set_env"     // Env, which takes precedence over the environment that processes had so far
	OpShutdown   Op = "shutdown"    // Shutdown: SIGTERM (or its signal) to all, SIGKILL after the grace, exit record, exit
)

// Limits of what a guest accepts and a client believes.
const (
	MaxArgs       = 4096      // argv and environment entries each
	MaxArgBytes   = 512 << 10 // bytes of argv and environment together
	MaxDirEntries = 10_000    // entries of one OpReadDir answer
	MaxProcesses  = 4096      // processes that PID 1 remembers, ended ones included; the oldest ended ones go first
	RingBytes     = 256 << 10 // bytes kept of each output stream of a process that ended or is not attached
	KeepExited    = 10 * time.Minute
	MaxTag        = 128 // bytes of Start.Tag
)

// Request opens a conversation.
type Request struct {
	Version int `json:"version"`
	Op      Op  `json:"op"`

	Start    *Start          `json:"start,omitempty"`
	Attach   *Attach         `json:"attach,omitempty"`
	Signal   *SignalRequest  `json:"signal,omitempty"`
	Stdin    *StdinRequest   `json:"stdin,omitempty"`
	Resize   *ResizeRequest  `json:"resize,omitempty"`
	Wait     *WaitRequest    `json:"wait,omitempty"`
	File     *FileRequest    `json:"file,omitempty"`
	Watch    *WatchRequest   `json:"watch,omitempty"`
	Shutdown *ShutdownParams `json:"shutdown,omitempty"`
	Renew    *Renew          `json:"renew,omitempty"`
	User     string          `json:"user,omitempty"`
	Env      []string        `json:"env,omitempty"`
}

// Response answers a Request. Failures are Error frames (frame.ErrorBody) with one of the Code* words instead.
type Response struct {
	Version   int           `json:"version"`
	Info      *Info         `json:"info,omitempty"`
	Process   *ProcessInfo  `json:"process,omitempty"`
	Processes []ProcessInfo `json:"processes,omitempty"`
	File      *FileInfo     `json:"file,omitempty"`
	Files     []FileInfo    `json:"files,omitempty"`
	User      *UserInfo     `json:"user,omitempty"`
	Entry     *Entry        `json:"entry,omitempty"`
	Entries   []Entry       `json:"entries,omitempty"`
	Data      []byte        `json:"data,omitempty"`
	More      bool          `json:"more,omitempty"` // OpList, OpReadDir, OpWalk: another Response frame with the next part follows
}

// Error codes that a guest answers with.
const (
	CodeBadRequest  = "bad_request"       // the request breaks a limit or lacks a field; the message names it
	CodeVersion     = "version_mismatch"  // the guest does not serve this protocol version
	CodeNoProcess   = "process_not_found" // no such process, or forgotten
	CodeNotFound    = "not_found"         // file: ENOENT
	CodePermission  = "permission_denied" // file: EACCES, EPERM
	CodeExists      = "already_exists"    // file: EEXIST
	CodeNotDir      = "not_a_directory"   // file: ENOTDIR
	CodeIsDir       = "is_a_directory"    // file: EISDIR
	CodeNoSpace     = "no_space"          // file: ENOSPC, EDQUOT
	CodeLoop        = "symlink_loop"      // file: ELOOP
	CodeCrossDevice = "cross_device"      // rename: EXDEV, the two paths are on different file systems
	CodeNetwork     = "network_mount"     // watch: the directory is on a network file system
	CodeUnknownUser = "unknown_user"      // no such user in the sandbox's /etc/passwd
	CodeBadCwd      = "cwd_not_found"     // the working directory does not exist or is none
	CodeBadCommand  = "command_not_found" // the program does not exist or cannot be executed
	CodeLimit       = "limit_reached"     // EAGAIN on fork, too many processes or descriptors
	CodeInternal    = "internal"
)

// Start describes a process to start. Only PID 1 starts processes, so that all are in its tree.
type Start struct {
	Argv []string `json:"argv"`          // argv[0] is looked up in the process's own PATH where it has no slash
	Env  []string `json:"env,omitempty"` // KEY=VALUE; PID 1 adds HOME, USER, LOGNAME, PATH where they are missing
	Cwd  string   `json:"cwd,omitempty"` // absolute, or relative to the user's home; empty: the home, or / where there is none
	User string   `json:"user,omitempty"`
	// User is a name of /etc/passwd or a number, optionally ":group"; empty is the sandbox's default user.

	TTY    bool        `json:"tty,omitempty"`   // a terminal instead of pipes; the process leads a new session
	Size   *frame.Size `json:"size,omitempty"`  // the terminal's first size; 80x24 where missing
	Stdin  bool        `json:"stdin,omitempty"` // keep stdin open for Stdin frames; else it is /dev/null
	Tag    string      `json:"tag,omitempty"`   // the caller's own name for it, at most 128 bytes
	Attach bool        `json:"attach,omitempty"`
	// KillOnDetach kills the process's session when this conversation ends before it does.
	KillOnDetach bool `json:"kill_on_detach,omitempty"`
	// KillAfter kills the process's session after so many nanoseconds, whoever is attached; 0: never.
	KillAfter time.Duration `json:"kill_after,omitempty"`
}

// Attach names a process and the offsets to read on from. A negative offset means from now on.
type Attach struct {
	PID    ProcessID `json:"pid"`
	Stdout int64     `json:"stdout,omitempty"` // also the offset of terminal output
	Stderr int64     `json:"stderr,omitempty"`
	// Lossy is for whoever only listens along: the process never waits for it, not even for a moment.
	Lossy bool `json:"lossy,omitempty"`
}

// SignalRequest sends a signal to a process, or to its whole process group.
type SignalRequest struct {
	PID    ProcessID `json:"pid"`
	Signal int       `json:"signal"`
	Group  bool      `json:"group,omitempty"`
}

// StdinRequest is one write (at most frame.MaxData bytes) to a process's stdin, or its close.
type StdinRequest struct {
	PID   ProcessID `json:"pid"`
	Data  []byte    `json:"data,omitempty"`
	Close bool      `json:"close,omitempty"`
}

// ResizeRequest sets a terminal's size.
type ResizeRequest struct {
	PID  ProcessID  `json:"pid"`
	Size frame.Size `json:"size"`
}

// WaitRequest names the process to wait for.
type WaitRequest struct {
	PID ProcessID `json:"pid"`
}

// ShutdownParams say how to end the sandbox.
type ShutdownParams struct {
	Signal int           `json:"signal"` // 0: SIGTERM
	Grace  time.Duration `json:"grace"`  // nanoseconds until SIGKILL; 0: at once
}

// FileRequest names a file as a user of the sandbox sees it: paths are resolved inside the sandbox, with that user's
// rights.
type FileRequest struct {
	Path    string `json:"path"`             // absolute, relative to the user's home, or ~/…
	Target  string `json:"target,omitempty"` // OpRename, OpSymlink
	User    string `json:"user,omitempty"`
	Flags   int    `json:"flags,omitempty"`   // OpOpen: O_* flags of Linux; only access mode, CREAT, EXCL, TRUNC, APPEND, DIRECTORY, NOFOLLOW count
	Mode    uint32 `json:"mode,omitempty"`    // OpOpen with CREAT, OpMkdir; 0 means 0644 and 0755
	Parents bool   `json:"parents,omitempty"` // make missing parent directories, owned by the user
	Depth   int    `json:"depth,omitempty"`   // OpWalk: levels, 1 to MaxDepth
	// Claim has root make, for the user, what the user may not: directories that are missing (with OpMkdir, and with Parents), and new
	// files (OpOpen with CREAT and EXCL) in a directory that the user may look into but not write. With Target, OpOpen makes the new
	// content of that file, which the user may write, for its owner. OpRename and OpRemove then do to such a file, whose name is
	// TempName's, what is needed. OpRemove also removes what is the user's own, and OpRename, where ClaimPath says so too, gives it another name,
	// which nobody has or something of the user's own. Nothing else that exists is touched, and no symlink is followed.
	Claim     bool `json:"claim,omitempty"`
	ClaimPath bool `json:"claim_path,omitempty"` // OpRename with Claim
}

// FileInfo is what a guest says of a file.
type FileInfo struct {
	Name    string    `json:"name"`
	Path    string    `json:"path"` // absolute, as resolved for the user
	Type    string    `json:"type"` // file, directory, symlink, other
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // permission bits with setuid, setgid and sticky, as in stat(2)
	UID     uint32    `json:"uid"`  // as inside
	GID     uint32    `json:"gid"`
	Owner   string    `json:"owner"`
	Group   string    `json:"group"`
	ModTime time.Time `json:"mod_time"`
	Target  string    `json:"target,omitempty"` // of a symlink
}

// UserInfo is an entry of the sandbox's /etc/passwd.
type UserInfo struct {
	Name   string   `json:"name"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	Home   string   `json:"home"`
	Shell  string   `json:"shell"`
}

// Info is what a guest says of itself.
type Info struct {
	SandboxID   string    `json:"sandbox_id"`
	Version     string    `json:"version"`      // SoulBox version of the init binary
	Protocol    int       `json:"protocol"`     // newest protocol version it speaks
	MinProtocol int       `json:"min_protocol"` // oldest
	StartedAt   time.Time `json:"started_at"`
	Processes   int       `json:"processes"` // processes running that PID 1 started
	Main        ProcessID `json:"main,omitempty"`
}

// ProcessInfo is what PID 1 knows of a process that it started.
type ProcessInfo struct {
	PID       ProcessID       `json:"pid"`
	Argv      []string        `json:"argv"`
	Env       []string        `json:"env,omitempty"` // what its start named, not what it has besides
	Cwd       string          `json:"cwd"`
	AskedCwd  string          `json:"asked_cwd,omitempty"` // as its start named it
	User      string          `json:"user"`
	Tag       string          `json:"tag,omitempty"`
	TTY       bool            `json:"tty,omitempty"`
	StartedAt time.Time       `json:"started_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"`
	Exit      *frame.ExitBody `json:"exit,omitempty"`
	Stdout    uint64          `json:"stdout"` // bytes produced so far; terminal output counts here
	Stderr    uint64          `json:"stderr"`
}
