// Package nodeapi is the API of a node: its types and its client. The control service and the Nomad driver speak it, over
// a unix socket or over TCP with mutual TLS.
//
// It owns the wire types and the client. It never touches a sandbox itself; that is package node.
package nodeapi

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Version is the version of the node's API. A client asks for it with the header VersionHeader; a node answers a version
// that it does not serve with 400 and api.CodeVersion. A request without the header gets the node's own version.
const (
	Version       = 1
	VersionHeader = "SoulBox-Node-API"
)

// UpgradeProtocol is the protocol that exec and attach upgrade to.
const UpgradeProtocol = "soulbox-frames/1"

// Headers and trailers of file and archive bodies.
const (
	// FileHeader carries the guest.FileInfo of a file body: base64 of its JSON.
	FileHeader = "SoulBox-File"
	// ErrorTrailer carries the JSON of an api.Error that broke a body after its status was sent.
	ErrorTrailer = "SoulBox-Error"
	// OffsetHeader carries the offset, in bytes of the stream, of the first byte of a log body.
	OffsetHeader = "SoulBox-Offset"
)

// State of a sandbox on a node.
type State string

// The states. A sandbox that failed to start leaves no record: its create call carries the error.
const (
	StateStarting State = "starting"
	StateRunning  State = "running"
	StateStopping State = "stopping"
	StateStopped  State = "stopped" // Exit says how
)

// CreateRequest asks a node for a sandbox. POST /v1/sandboxes; answered with Sandbox once PID 1 serves and Main, if any, runs.
// Repeating a request with the same id returns the sandbox that exists (idempotent), or 409 where the request differs.
type CreateRequest struct {
	ID       api.SandboxID     `json:"id"`
	Template string            `json:"template"` // a name of the node's store, or a digest "sha256:…"
	Hostname string            `json:"hostname,omitempty"`
	Env      map[string]string `json:"env,omitempty"`  // environment of every process in it
	User     string            `json:"user,omitempty"` // default user; empty is the template's own
	Cwd      string            `json:"cwd,omitempty"`
	Profile  string            `json:"profile,omitempty"` // default or strict
	QoS      string            `json:"qos,omitempty"`     // guaranteed, burstable (where empty) or best_effort
	Limits   Limits            `json:"limits"`
	Deadline time.Time         `json:"deadline,omitzero"` // when the node ends it by itself; zero: never
	// OnDeadline is DeadlineStop where empty, DeadlinePause or DeadlinePauseFiles.
	OnDeadline string            `json:"on_deadline,omitempty"`
	Main       *guest.Start      `json:"main,omitempty"` // its own command; the sandbox ends with it
	Logs       *LogTargets       `json:"logs,omitempty"`
	Owner      Owner             `json:"owner"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	// AccessToken is what clients of envd must show; empty: nothing. No answer of the node has it.
	AccessToken string `json:"access_token,omitempty"`
	// Network is what it may reach; nil: what the platform allows everybody.
	Network *Network `json:"network,omitempty"`
	// Publish are ports that the node listens for, each with its own Address and NodePort. Only clients of the unix socket may ask for them:
	// Nomad has given them to the task.
	Publish []PublishedPort `json:"publish,omitempty"`
	// PublishIn is the path of a network namespace in which the node listens for these, in place of its own: that of the task's group. The
	// sandbox is not in it. Only clients of the unix socket may name one.
	PublishIn string `json:"publish_in,omitempty"`
	// Devices are devices of the host that are its own, and Mounts what of the host their driver needs beside them, read-only. Only clients of the
	// unix socket may name any: Nomad has reserved them for the task. A sandbox with either is not checkpointed.
	Devices []Device `json:"devices,omitempty"`
	Mounts  []Mount  `json:"mounts,omitempty"`
	// Restore starts it from a snapshot in place of the template.
	Restore *Restore `json:"restore,omitempty"`
	// Warm makes it for somebody who is not known yet: it answers no client of its envd and of its ports until a ClaimRequest.
	Warm bool `json:"warm,omitempty"`
	// TemplateOf is the tenant whose own copy of the template is its lower layer, made where there is none yet; empty: the one that
	// sandboxes of all tenants share.
	TemplateOf string `json:"template_of,omitempty"`
}

// OwnerControl is the owner kind of the sandboxes that the control service makes.
const OwnerControl = "control"

// Device is a character device of the host. Its node has to be open to everybody: nobody in a sandbox is anybody to it.
type Device struct {
	Host   string `json:"host"`   // path of the host's node
	Path   string `json:"path"`   // below /dev
	Access string `json:"access"` // r, w or rw
}

// Mount is a file or a folder of the host.
type Mount struct {
	Host string `json:"host"`
	Path string `json:"path"`
}

// Owner says on whose behalf a sandbox exists.
type Owner struct {
	Kind    string `json:"kind"`               // OwnerControl, "nomad" (a task that a job file named itself), "test"
	AllocID string `json:"alloc_id,omitempty"` // Nomad's allocation, where there is one
	TaskID  string `json:"task_id,omitempty"`  // Nomad's task id, where there is one
	// Folder is a folder of the host that is there for as long as the owner may ask for the sandbox: the allocation's. The record of
	// a stopped sandbox stays while it is there, and goes after it. Only clients of the unix socket may name one.
	Folder string `json:"folder,omitempty"`
}

// LogTargets are FIFOs or files of the host into which the node copies the main process's output. They are opened
// without following links.
type LogTargets struct {
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
}

// Limits of one sandbox. Zero means the node's default for it, which is none for disk and io; in a LimitsRequest it leaves
// what is set.
type Limits struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty"`   // hard limit in thousandths of a core
	CPUWeight   int64 `json:"cpu_weight,omitempty"`   // 1..10000, as cgroup v2's cpu.weight
	MemoryBytes int64 `json:"memory_bytes,omitempty"` // hard limit; no swap
	PIDs        int64 `json:"pids,omitempty"`         // processes and threads
	TmpBytes    int64 `json:"tmp_bytes,omitempty"`    // size of /tmp; counts as memory
	NoFile      int64 `json:"nofile,omitempty"`       // RLIMIT_NOFILE of each process

	DiskBytes  int64 `json:"disk_bytes,omitempty"`  // of what it writes outside /tmp
	DiskInodes int64 `json:"disk_inodes,omitempty"` // files that it makes outside /tmp

	// Of the node's disk, per second; -1 lifts a limit. On cgroup v1 only direct and synchronous transfers count.
	IOReadBytes  int64 `json:"io_read_bytes,omitempty"`
	IOWriteBytes int64 `json:"io_write_bytes,omitempty"`
	IOReadOps    int64 `json:"io_read_ops,omitempty"`
	IOWriteOps   int64 `json:"io_write_ops,omitempty"`
}

// LimitsRequest changes limits of a running sandbox: PUT /v1/sandboxes/{id}/limits, answered with Sandbox. tmp_bytes and
// nofile do not change. A memory limit below what is in use, or a disk limit that the node's way of limiting cannot set so low,
// is 409; a limit that this node does not have is 501 with api.CodeUnsupported. On error all limits are as they were.
type LimitsRequest struct {
	Limits Limits `json:"limits"`
}

// MetaTemplateID is the entry of a sandbox's metadata with the id of its template, which programs inside are told.
const MetaTemplateID = "template_id"

// Sandbox is what a node knows of a sandbox.
type Sandbox struct {
	ID         api.SandboxID     `json:"id"`
	State      State             `json:"state"`
	Template   string            `json:"template"`              // as requested
	Digest     string            `json:"template_digest"`       // as resolved
	TemplateOf string            `json:"template_of,omitempty"` // the tenant whose own copy it is
	Hostname   string            `json:"hostname"`
	Limits     Limits            `json:"limits"` // as enforced
	User       string            `json:"user,omitempty"`
	Profile    string            `json:"profile"`
	QoS        string            `json:"qos,omitempty"`
	Deadline   time.Time         `json:"deadline,omitzero"`
	OnDeadline string            `json:"on_deadline,omitempty"`
	Owner      Owner             `json:"owner"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	CreatedAt  time.Time         `json:"created_at"`
	StartedAt  time.Time         `json:"started_at,omitzero"`
	EndedAt    time.Time         `json:"ended_at,omitzero"`
	PID        int               `json:"pid,omitempty"`   // of its PID 1 on the host
	Main       guest.ProcessID   `json:"main,omitempty"`  // of its own command, inside
	Exit       *Exit             `json:"exit,omitempty"`  // where stopped
	Pause      *Pause            `json:"pause,omitempty"` // where paused
	Warm       bool              `json:"warm,omitempty"`  // nobody has it yet
	Devices    []Device          `json:"devices,omitempty"`
	Mounts     []Mount           `json:"mounts,omitempty"`
	Policy     string            `json:"policy,omitempty"` // PolicyDigest of what it may reach; empty: it has no network
	Steps      []guest.Step      `json:"steps,omitempty"`
}

// Exit says how a sandbox ended.
type Exit struct {
	Reason  string `json:"reason"` // one of the Exit* words
	Code    int    `json:"code"`   // exit code of Main, 128+Signal for a signal
	Signal  int    `json:"signal,omitempty"`
	OOM     bool   `json:"oom,omitempty"`        // the kernel's out-of-memory killer ended a process of it
	PIDs    bool   `json:"pids_limit,omitempty"` // processes or threads were refused at limits.pids at some time
	Disk    bool   `json:"disk_full,omitempty"`  // its disk limit, bytes or inodes, was used up at its end
	Message string `json:"message,omitempty"`
}

// Reasons of an Exit.
const (
	ExitMainExited = "main_exited"      // its own command ended
	ExitStopped    = "stopped"          // asked to stop
	ExitDeadline   = "deadline"         // the node ended it at its deadline
	ExitKilled     = "killed"           // PID 1 was killed from outside or by the kernel (see OOM)
	ExitLost       = "lost_with_reboot" // the machine restarted under it
	ExitMemoryLost = "memory_lost"      // the rest of its memory after a resume could not come: who should bring it was killed
)

// StopRequest ends a sandbox: POST /v1/sandboxes/{id}/stop. It answers when the sandbox has stopped. The record stays
// until DELETE /v1/sandboxes/{id}.
type StopRequest struct {
	Signal  int           `json:"signal,omitempty"` // 0: SIGTERM
	Timeout time.Duration `json:"timeout"`          // nanoseconds until everything is killed
	Reason  string        `json:"reason,omitempty"` // ExitStopped by default
}

// Stats of one sandbox at one moment, from the kernel's counters. Measured names the fields that the kernel has.
type Stats struct {
	Time        time.Time `json:"time"`
	CPUNanos    uint64    `json:"cpu_nanos"`
	UserNanos   uint64    `json:"user_nanos"`
	SystemNanos uint64    `json:"system_nanos"`
	Throttled   uint64    `json:"throttled_periods"`
	ThrottledNs uint64    `json:"throttled_nanos"`
	MemoryBytes uint64    `json:"memory_bytes"` // without the page cache that can be dropped
	MemoryCache uint64    `json:"memory_cache_bytes"`
	MemoryMax   uint64    `json:"memory_max_bytes"` // high-water mark
	MemoryLimit uint64    `json:"memory_limit_bytes"`
	PIDs        uint64    `json:"pids"`
	OOMKills    uint64    `json:"oom_kills"`
	ForksDenied uint64    `json:"forks_denied"` // processes and threads refused at the limit PIDs
	// Zero, and not among Measured, where the sandbox has no disk limit that could tell.
	DiskBytes      uint64   `json:"disk_bytes"`
	DiskLimit      uint64   `json:"disk_limit_bytes"`
	DiskInodes     uint64   `json:"disk_inodes"`
	DiskInodeLimit uint64   `json:"disk_inode_limit"`
	Measured       []string `json:"measured"` // JSON names of the fields above that were read
}

// Probe is the answer of one kernel feature probe.
type Probe struct {
	Name   string `json:"name"` // snake_case
	OK     bool   `json:"ok"`
	Value  string `json:"value,omitempty"`  // what was found, where that is more than yes: an ABI, a mode, a version
	Reason string `json:"reason,omitempty"` // why not, and the minimum version
	Needed bool   `json:"needed"`           // without it no sandbox can start
}

// Check is how one thing is that a node needs.
type Check struct {
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	Output string      `json:"output"` // one line for people
}

// The things that are checked.
const (
	CheckRuntime    = "runtime"    // sandboxes can be made
	CheckCheckpoint = "checkpoint" // processes can go to disk
	CheckDisk       = "disk"
	CheckNetwork    = "network" // slots are ready
	CheckCgroups    = "cgroups"
	CheckClock      = "clock"
)

// CheckNames are the names of all checks, in the order of Node.Checks.
func CheckNames() []string {
	return []string{CheckRuntime, CheckCheckpoint, CheckDisk, CheckNetwork, CheckCgroups, CheckClock}
}

// CheckStatus says how bad it is. The words are Consul's.
type CheckStatus string

// The statuses of a check.
const (
	CheckPassing  CheckStatus = "passing"
	CheckWarning  CheckStatus = "warning"  // sandboxes can be made, but something is wrong
	CheckCritical CheckStatus = "critical" // none can
)

// Health is how a node is at the moment.
type Health struct {
	Healthy  bool    `json:"healthy"` // it can make sandboxes
	Reason   string  `json:"reason,omitempty"`
	Running  int     `json:"running"`
	DiskFree int64   `json:"disk_free_bytes"`
	Checks   []Check `json:"checks"`
}

// Node is what a node says of itself: GET /v1/node.
type Node struct {
	ID          api.NodeID `json:"id"`
	Name        string     `json:"name"`
	Version     string     `json:"version"`     // SoulBox version
	APIVersion  int        `json:"api_version"` // Version
	BootID      string     `json:"boot_id"`     // of the kernel
	Epoch       string     `json:"epoch"`       // new at every start of the daemon
	Kernel      string     `json:"kernel"`
	Healthy     bool       `json:"healthy"`
	Reason      string     `json:"reason,omitempty"`
	Checks      []Check    `json:"checks,omitempty"` // in the order of CheckNames
	Probes      []Probe    `json:"probes"`
	CPUs        int        `json:"cpus"`
	MemoryBytes int64      `json:"memory_bytes"`
	DiskBytes   int64      `json:"disk_bytes"`
	DiskFree    int64      `json:"disk_free_bytes"`
	Running     int        `json:"running"`
	MaxSandbox  int        `json:"max_sandboxes"`
	StartedAt   time.Time  `json:"started_at"`
	Templates   []Template `json:"templates"`
	// OwnTemplates are the copies of templates that one tenant alone uses.
	OwnTemplates []OwnTemplate `json:"own_templates,omitempty"`
	PID          int           `json:"pid"` // of the daemon
	// SnapshotStore tells one snapshot store from another: nodes with the same can restore each other's snapshots. Empty: the node
	// restores none.
	SnapshotStore string `json:"snapshot_store,omitempty"`
	// TakesSnapshotKey says that the store's key has to be given by PutSnapshotKey.
	TakesSnapshotKey bool   `json:"takes_snapshot_key,omitempty"`
	Address          string `json:"address"` // host:port of its API over TCP, empty where it has none
}

// OwnTemplate is a tenant's own copy of a template.
type OwnTemplate struct {
	Tenant string `json:"tenant"`
	Digest string `json:"digest"`
}

// Template is a root file system in a node's store.
type Template struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"` // sha256:<hex> over its canonical listing
	Bytes     int64     `json:"bytes"`
	Files     int64     `json:"files"`
	CreatedAt time.Time `json:"created_at"`
	User      string    `json:"user,omitempty"` // default user of processes
	Cwd       string    `json:"cwd,omitempty"`
	Env       []string  `json:"env,omitempty"` // from the image's own configuration
}

// EventType says what happened.
type EventType string

// The event types. A stream starts with EventSync when the node cannot continue from where the client was.
const (
	EventSync     EventType = "sync"     // Sandboxes holds all that exist
	EventCreated  EventType = "created"  // Sandbox is starting
	EventRunning  EventType = "running"  // ready for exec
	EventStopped  EventType = "stopped"  // with Exit
	EventRemoved  EventType = "removed"  // record gone
	EventUpdated  EventType = "updated"  // deadline, limits or what it may reach changed
	EventTemplate EventType = "template" // the store changed
	EventBeat     EventType = "beat"     // every 5 s without another event
)

// Event is one line of GET /v1/events?epoch=E&since=N (newline-delimited JSON).
type Event struct {
	Epoch     string        `json:"epoch"`
	Seq       uint64        `json:"seq"`
	Time      time.Time     `json:"time"`
	Type      EventType     `json:"type"`
	ID        api.SandboxID `json:"id,omitempty"`
	Sandbox   *Sandbox      `json:"sandbox,omitempty"`
	Sandboxes []Sandbox     `json:"sandboxes,omitempty"`
	Health    *Health       `json:"health,omitempty"` // of EventBeat
}

// ExecRequest starts a process: POST /v1/sandboxes/{id}/exec with "Upgrade: soulbox-frames/1". After "101 Switching
// Protocols" both sides speak frames: the server sends Response (guest.Response with Process) or Error, then the attachment.
// The request's JSON travels as the first frame (frame.Request) from the client, after the upgrade.
type ExecRequest struct {
	guest.Start
}

// AttachRequest joins a process: POST /v1/sandboxes/{id}/attach, upgraded as exec.
type AttachRequest struct {
	guest.Attach
}

// SignalRequest signals a process (PID) or, where PID is 0, the sandbox's main process or else all its processes:
// POST /v1/sandboxes/{id}/signal.
type SignalRequest struct {
	PID    guest.ProcessID `json:"pid,omitempty"`
	Signal int             `json:"signal"`
	Group  bool            `json:"group,omitempty"`
}

// ResizeRequest is POST /v1/sandboxes/{id}/resize.
type ResizeRequest struct {
	PID  guest.ProcessID `json:"pid"`
	Size frame.Size      `json:"size"`
}

// DeadlineRequest is PUT /v1/sandboxes/{id}/deadline. Zero removes the deadline.
type DeadlineRequest struct {
	Deadline time.Time `json:"deadline,omitzero"`
}

// HealthReply is the answer of GET /v1/sandboxes/{id}/health: one round trip to PID 1 of the sandbox.
type HealthReply struct {
	ID          api.SandboxID `json:"id"`
	Healthy     bool          `json:"healthy"`
	Reason      string        `json:"reason,omitempty"` // why it is not
	State       State         `json:"state"`
	Uptime      time.Duration `json:"uptime"`       // nanoseconds since it was running
	InitVersion string        `json:"init_version"` // SoulBox version of its PID 1
	RoundTrip   time.Duration `json:"round_trip"`   // nanoseconds to PID 1 and back
	Processes   int           `json:"processes"`    // processes running that PID 1 started
}

// Stream of main's output.
const (
	StreamStdout = "stdout" // terminal output counts here
	StreamStderr = "stderr"
)

// LogOptions choose what GET /v1/sandboxes/{id}/logs sends of the main process's output.
type LogOptions struct {
	Stream string // StreamStdout (default) or StreamStderr
	Offset int64  // first byte wanted; what left PID 1's ring is skipped, OffsetHeader tells
	Follow bool   // stay until the process ends
	Tail   int64  // where positive: only the last so many bytes that exist, Offset does not count
}

// FileOptions say as whom, and how, files are read and written.
type FileOptions struct {
	User string // of the sandbox; empty is its default user
	Mode uint32 // permission bits of a written file; 0 keeps those of a file that exists, else 0644
}
