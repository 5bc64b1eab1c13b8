package api

import "time"

// CreateRequest asks Client.CreateSandbox for a sandbox. Missing fields mean the service's and the template's defaults.
type CreateRequest struct {
	CreateOptions
	Template            string            // a name, an id, or a digest "sha256:…"
	Timeout             *int64            // seconds until its deadline
	Env                 map[string]string // environment of all its processes
	Metadata            map[string]string
	AllowInternetAccess *bool
}

// CreateOptions are what a sandbox can be made with beyond E2B's contract: the member "soulbox" of a create's body. Where it is
// there, even empty, the answer has a member of that name too.
type CreateOptions struct {
	// ID makes the request idempotent: repeated with the same id it answers with the sandbox that exists. See NewSandboxID.
	ID        SandboxID `json:"id,omitempty"`
	CPU       *float64  `json:"cpu,omitempty"`        // cores; not together with CPUMillis
	CPUMillis *int64    `json:"cpu_millis,omitempty"` // thousandths of a core
	MemoryMB  *int64    `json:"memory_mb,omitempty"`  // MiB
	DiskMB    *int64    `json:"disk_mb,omitempty"`    // MiB that it may write outside /tmp; refused by a node that cannot hold it
	PIDs      *int64    `json:"pids,omitempty"`       // processes and threads
	QoS       string    `json:"qos,omitempty"`        // QoSGuaranteed, QoSBurstable or QoSBestEffort
	User      string    `json:"user,omitempty"`       // default user of its processes
	Cwd       string    `json:"cwd,omitempty"`        // default directory of its processes
	Hostname  string    `json:"hostname,omitempty"`
	Profile   string    `json:"profile,omitempty"` // default or strict
	// Command is its own command: the sandbox ends with it, and GET /v1/sandboxes/{id}/logs is its output. TTY gives it a terminal.
	Command []string `json:"command,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	StorageLimits
	Placement *Placement `json:"placement,omitempty"` // where it may run, and where it had better
}

// Created is the member "soulbox" of a create's answer.
type Created struct {
	Sandbox
	Steps []Step `json:"steps"` // the timed steps of its start
}

// Step is one timed step of a start.
type Step struct {
	Name  string        `json:"name"`
	Nanos time.Duration `json:"nanos"`
}

// Sandbox is all that is told of a sandbox: the member "soulbox" of its other descriptions, where the parameter soulbox=true asks
// for it.
type Sandbox struct {
	ID                  SandboxID         `json:"id"`
	Template            string            `json:"template"` // as requested
	Digest              string            `json:"template_digest,omitempty"`
	Node                NodeID            `json:"node_id,omitempty"` // empty until a node has reported it
	State               string            `json:"state"`             // starting, running, paused, stopping, stopped, failed, lost
	Reason              string            `json:"reason,omitempty"`  // why it ended or is about to
	CreatedAt           time.Time         `json:"created_at"`
	StartedAt           time.Time         `json:"started_at,omitzero"`
	EndAt               time.Time         `json:"end_at,omitzero"`     // its deadline
	MaxEndAt            time.Time         `json:"max_end_at,omitzero"` // no deadline may lie after this
	EndedAt             time.Time         `json:"ended_at,omitzero"`
	CPUMillis           int64             `json:"cpu_millis"` // thousandths of a core
	MemoryMB            int64             `json:"memory_mb"`  // MiB
	DiskMB              int64             `json:"disk_mb"`    // MiB that it may write; 0: as much as there is
	QoS                 string            `json:"qos,omitempty"`
	Placement           *Placement        `json:"placement,omitempty"`
	PIDs                int64             `json:"pids,omitempty"`
	DiskInodes          int64             `json:"disk_inodes,omitempty"` // files that it may make; 0: as many as there are
	IOReadBytes         int64             `json:"io_read_bytes,omitempty"`
	IOWriteBytes        int64             `json:"io_write_bytes,omitempty"`
	IOReadOps           int64             `json:"io_read_ops,omitempty"`
	IOWriteOps          int64             `json:"io_write_ops,omitempty"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	KeyID               string            `json:"key_id,omitempty"` // the API key that created it
	OnTimeout           string            `json:"on_timeout"`       // kill or pause
	AutoResume          bool              `json:"auto_resume"`
	AllowInternetAccess *bool             `json:"allow_internet_access,omitempty"`
	Pool                PoolID            `json:"pool_id,omitempty"` // that it came from, or would have
	Warm                bool              `json:"warm,omitempty"`    // it came from its pool
	Exit                *SandboxExit      `json:"exit,omitempty"`
}

// SandboxExit says how a sandbox ended.
type SandboxExit struct {
	Reason  string `json:"reason"` // main_exited, stopped, deadline, killed, lost_with_reboot, memory_lost
	Code    int    `json:"code"`   // exit code of its own command; 128+Signal where Signal is set
	Signal  int    `json:"signal,omitempty"`
	OOM     bool   `json:"oom,omitempty"`        // the kernel's out-of-memory killer ended a process of it
	PIDs    bool   `json:"pids_limit,omitempty"` // processes or threads were refused at its limit of them
	Disk    bool   `json:"disk_full,omitempty"`  // its disk limit, bytes or files, was used up at its end
	Message string `json:"message,omitempty"`
}

// ListOptions choose sandboxes for Client.ListSandboxes. The zero value is the first page of all that have not ended, newest first.
type ListOptions struct {
	Metadata     map[string]string // all pairs must be equal
	States       []string          // empty: all but the ended ones
	Template     string
	StartedAfter time.Time
	Ascending    bool   // oldest first
	Limit        int    // 1 to 1000; 0: 100
	NextToken    string // SandboxList.NextToken of the page before
}

// SandboxList is a page of Client.ListSandboxes.
type SandboxList struct {
	Sandboxes    []Sandbox
	NextToken    string // empty on the last page
	TotalRunning int    // running ones that match, on all pages
}

// SandboxHealth is the answer of GET /v1/sandboxes/{id}/health. The status of an unhealthy one is 503, and the fields of
// Error stand beside these.
type SandboxHealth struct {
	Status        string    `json:"status"` // HealthOK or HealthUnhealthy
	SandboxID     SandboxID `json:"sandbox_id"`
	UptimeSeconds int64     `json:"uptime_seconds"`
	Version       string    `json:"version"` // SoulBox version inside it, else of the service
	State         string    `json:"state"`
	Node          NodeID    `json:"node_id,omitempty"`
	Reason        string    `json:"reason,omitempty"` // why it is not healthy
}

// Values of Status in SandboxHealth and ServiceHealth.
const (
	HealthOK        = "ok"
	HealthUnhealthy = "unhealthy"
)

// OK reports whether the sandbox is healthy.
func (h SandboxHealth) OK() bool { return h.Status == HealthOK }

// Stats are the kernel's counters of a sandbox at one moment. Measured names the fields that its kernel has.
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
	ForksDenied uint64    `json:"forks_denied"` // processes and threads refused at the limit of them
	// Zero, and not among Measured, where the sandbox has no disk limit that could tell.
	DiskBytes      uint64   `json:"disk_bytes"`
	DiskLimit      uint64   `json:"disk_limit_bytes"`
	DiskInodes     uint64   `json:"disk_inodes"`
	DiskInodeLimit uint64   `json:"disk_inode_limit"`
	Measured       []string `json:"measured"`
}
