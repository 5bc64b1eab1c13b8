package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// DefaultTenant is the tenant that is always there.
const DefaultTenant = "default"

// SandboxState is the state of a sandbox as the control service intends and knows it.
type SandboxState string

// The states. Stopped, failed and lost sandboxes have ended; their Reason says why. A lost one may be found again.
const (
	Starting SandboxState = "starting"
	Running  SandboxState = "running"
	Paused   SandboxState = "paused"
	Stopping SandboxState = "stopping"
	Stopped  SandboxState = "stopped"
	Failed   SandboxState = "failed"
	Lost     SandboxState = "lost"
)

// Ended reports whether a sandbox in state s holds no resources any more, as far as is known.
func (s SandboxState) Ended() bool { return s == Stopped || s == Failed || s == Lost }

// Valid reports whether s is one of the states.
func (s SandboxState) Valid() bool {
	switch s {
	case Starting, Running, Paused, Stopping, Stopped, Failed, Lost:
		return true
	}
	return false
}

// OnTimeout says what happens to a sandbox at its deadline.
type OnTimeout string

// The ways to end at a deadline.
const (
	OnTimeoutKill  OnTimeout = "kill"
	OnTimeoutPause OnTimeout = "pause"
)

// Lifecycle is what a sandbox does by itself.
type Lifecycle struct {
	OnTimeout  OnTimeout `codec:"on_timeout"`
	AutoResume bool      `codec:"auto_resume"`
	// FilesOnly says that a pause at the deadline keeps the files and ends the processes.
	FilesOnly bool `codec:"files_only"`
}

// Sandbox is a sandbox that exists, is to exist, or existed a while ago. Values that leave the store share their maps and
// slices with it: nobody changes them.
type Sandbox struct {
	ID       api.SandboxID `codec:"id"`
	Tenant   string        `codec:"tenant"`
	Template string        `codec:"template"` // as requested
	Digest   string        `codec:"digest"`   // as resolved: sha256:<hex>
	// TemplateID and Alias are what clients of the contract are told of the template: its id and its name, or those of the
	// snapshot. A copy has its parent's. TemplateID is empty in records from before: what was requested is told instead.
	TemplateID string `codec:"template_id"`
	Alias      string `codec:"alias"`

	Node   api.NodeID   `codec:"node"` // empty until a node has reported it
	State  SandboxState `codec:"state"`
	Reason string       `codec:"reason"` // why it ended, or is about to; for people

	CreatedAt time.Time `codec:"created_at"` // when the create call was accepted
	StartedAt time.Time `codec:"started_at"` // when the node had it running
	EndAt     time.Time `codec:"end_at"`     // deadline; the node ends it then
	MaxEndAt  time.Time `codec:"max_end_at"` // no deadline may lie after this
	EndedAt   time.Time `codec:"ended_at"`   // when it stopped, failed or was lost

	// Timeout is how long it was last given to run: as long as traffic that resumes it gives it again.
	Timeout time.Duration `codec:"timeout"`
	// PausedAt is when it was paused; zero while it is not.
	PausedAt time.Time `codec:"paused_at"`
	// PausedFiles tells that its files alone are kept while it is paused.
	PausedFiles bool `codec:"paused_files"`
	// Stored is the copy of a paused sandbox in the snapshot store StoredIn, from which any node that has the store brings it back.
	Stored   api.SnapshotID `codec:"stored"`
	StoredIn string         `codec:"stored_in"`
	// Moving tells that it is about to be paused, or is, only to go on at once on another node.
	Moving bool `codec:"moving"`
	// ResumedAt is when it was resumed last; zero where it never was.
	ResumedAt time.Time `codec:"resumed_at"`
	// Request is the id that the create asked for, where it is another one: a repeated create finds the sandbox by it.
	Request api.SandboxID `codec:"request"`
	// Pool is the pool that it came from, or would have; empty: there was none for it. Warm: it came from there.
	Pool api.PoolID `codec:"pool"`
	Warm bool       `codec:"warm"`
	// Origin is the snapshot that it was made from; empty: from its template.
	Origin api.SnapshotID `codec:"origin"`

	CPUMillis int64  `codec:"cpu_millis"` // thousandths of a core
	MemoryMB  int64  `codec:"memory_mb"`  // MiB
	DiskMB    int64  `codec:"disk_mb"`    // MiB, as clients of the contract are told
	QoS       string `codec:"qos"`        // class; empty: burstable
	Where     string `codec:"where"`      // where it may run: placement.Rules
	Limits    Limits `codec:"limits"`

	// RateIn and RateOut are how much its link carries to it and from it, in bytes a second, as Network says; 0: as much as there is.
	RateIn  int64 `codec:"rate_in"`
	RateOut int64 `codec:"rate_out"`
	Hold    Hold  `codec:"hold"`

	Metadata  map[string]string `codec:"metadata"`
	EnvVars   map[string]string `codec:"env_vars"`
	KeyID     string            `codec:"key_id"` // the API key that created it
	Owner     string            `codec:"owner"`  // who created it, in one word; empty in records from before: the key
	Lifecycle Lifecycle         `codec:"lifecycle"`

	AllowInternetAccess *bool  `codec:"allow_internet_access"`
	Network             []byte `codec:"network"` // JSON as requested
	// TemplateNetwork is what its template allowed when it was made: it stays, whatever becomes of the template.
	TemplateNetwork NetworkPolicy `codec:"template_network"`
	Published       []Published   `codec:"published"`

	// EnvdToken is what clients of its processes and files must show, TrafficToken what clients of its other ports must. Empty:
	// nothing.
	EnvdToken    string `codec:"envd_token"`
	TrafficToken string `codec:"traffic_token"`

	Exit *Exit `codec:"exit"` // how it ended, where the node knows

	// Creator is the run of a control service that is making it. Another run that sees it starting finishes or fails it.
	Creator string `codec:"creator"`

	CreateIndex uint64 `codec:"create_index"` // Raft index of its first entry
	ModifyIndex uint64 `codec:"modify_index"` // Raft index of its last change
}

// Wakes reports whether traffic resumes the sandbox: one that is paused, was made for that or is on its way to another node, and has its
// processes yet.
func (s Sandbox) Wakes() bool {
	return s.State == Paused && (s.Lifecycle.AutoResume || s.Moving) && !s.PausedFiles
}

// Leaving reports whether a running sandbox is about to be paused to go on on another node: requests wait.
func (s Sandbox) Leaving() bool { return s.State == Running && s.Moving }

// CPUCount returns the whole cores that CPUMillis needs, at least 1.
func (s Sandbox) CPUCount() int { return max(1, int((s.CPUMillis+999)/1000)) }

// Exit says how a sandbox ended, as its node reported it.
type Exit struct {
	Reason  string `codec:"reason"` // one of nodeapi's Exit* words
	Code    int    `codec:"code"`
	Signal  int    `codec:"signal"`
	OOM     bool   `codec:"oom"`
	PIDs    bool   `codec:"pids_limit"` // it met its limit of processes
	Disk    bool   `codec:"disk_full"`  // it had used up its disk limit
	Message string `codec:"message"`
}

// Key is an API key. The secret itself is nowhere: only its hash is kept.
type Key struct {
	ID        string    `codec:"id"` // 16 hexadecimal digits
	Tenant    string    `codec:"tenant"`
	Name      string    `codec:"name"`
	Hash      []byte    `codec:"hash"` // SHA-256 of the secret's 32 bytes
	CreatedAt time.Time `codec:"created_at"`
	CreatedBy string    `codec:"created_by"` // key id, or "bootstrap"

	// Roles hold in the key's tenant, or, of a Global one, everywhere. nil: it is from before there were roles, see Rights.
	Roles      []string  `codec:"roles"`
	Global     bool      `codec:"global"`
	Owner      string    `codec:"owner"`        // who it is for, for people
	ExpiresAt  time.Time `codec:"expires_at"`   // zero: never
	LastUsedAt time.Time `codec:"last_used_at"` // to a few minutes

	CreateIndex uint64 `codec:"create_index"`
	ModifyIndex uint64 `codec:"modify_index"`
}

// Scope is where the key's roles hold: its tenant, or Everywhere.
func (k Key) Scope() string {
	if k.Global {
		return Everywhere
	}
	return k.Tenant
}

// Expired reports whether the key is refused at a time.
func (k Key) Expired(now time.Time) bool { return !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt) }

// Rights returns the key's roles, with those of keys from before there were roles: the first key of a cluster may do
// everything, others what concerns their tenant.
func (k Key) Rights() (roles []string, scope string) {
	switch {
	case k.Roles != nil:
		return k.Roles, k.Scope()
	case k.CreatedBy == bootstrapCreator:
		return []string{"admin"}, Everywhere
	}
	return []string{"tenant-admin"}, k.Tenant
}

// bootstrapCreator is the CreatedBy of the first key.
const bootstrapCreator = "bootstrap"

// Template is a root file system that nodes hold under its digest.
type Template struct {
	Tenant      string        `codec:"tenant"`
	Name        string        `codec:"name"`
	Digest      string        `codec:"digest"` // sha256:<hex> over its canonical listing
	Bytes       int64         `codec:"bytes"`
	Files       int64         `codec:"files"`
	Source      string        `codec:"source"` // what it was imported from, for people
	User        string        `codec:"user"`
	Cwd         string        `codec:"cwd"`
	Env         []string      `codec:"env"`
	TemplateID  string        `codec:"template_id"` // the same as long as its name exists; empty in records of before: made of the name
	BuildID     string        `codec:"build_id"`    // a UUID; empty: made of the digest
	BuildKey    string        `codec:"build_key"`   // of what it was built from and by; equal ones have equal content. Empty: not built
	Public      bool          `codec:"public"`      // others may use it, with its tenant before its name
	CPUMillis   int64         `codec:"cpu_millis"`  // of its sandboxes, where nobody says otherwise; 0: the service's default
	MemoryMB    int64         `codec:"memory_mb"`   // the same, in MiB
	StartCmd    string        `codec:"start_cmd"`   // is started with each of its sandboxes
	ReadyCmd    string        `codec:"ready_cmd"`   // succeeds once StartCmd serves
	Network     NetworkPolicy `codec:"network"`     // of its sandboxes that are made from then on
	Where       string        `codec:"where"`       // where its sandboxes may run that are made from then on: placement.Rules
	SpawnCount  int64         `codec:"spawn_count"` // sandboxes that were made of it
	SpawnedAt   time.Time     `codec:"spawned_at"`  // when the last one was
	CreatedAt   time.Time     `codec:"created_at"`
	UpdatedAt   time.Time     `codec:"updated_at"`
	CreateIndex uint64        `codec:"create_index"`
	ModifyIndex uint64        `codec:"modify_index"`
}
