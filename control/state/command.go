package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// commandType is the first byte of a log entry. Numbers are never used again for something else.
type commandType uint8

const (
	typeSandboxCreate     commandType = 1
	typeSandboxRunning    commandType = 2
	typeSandboxStopping   commandType = 3
	typeSandboxEnd        commandType = 4
	typeSandboxDeadline   commandType = 5
	typeSandboxPurge      commandType = 6
	typeSandboxNetwork    commandType = 7
	typeSandboxPaused     commandType = 8
	typeSandboxResumed    commandType = 9
	typeSandboxMove       commandType = 10
	typeSandboxLimits     commandType = 12
	typeSandboxHold       commandType = 13
	typeSandboxUnhold     commandType = 14
	typeSandboxPublish    commandType = 15
	typeKeyPut            commandType = 16
	typeKeyDelete         commandType = 17
	typeKeyBootstrap      commandType = 18
	typeKeyChange         commandType = 19
	typeKeysUsed          commandType = 20
	typeKeysPurge         commandType = 21
	typeRingPut           commandType = 28
	typeTemplatePut       commandType = 32
	typeTemplateDelete    commandType = 33
	typeTemplatePublish   commandType = 34
	typeTemplateNetwork   commandType = 35
	typeTemplatePlacement commandType = 36
	typeSnapshotPut       commandType = 96
	typeSnapshotEnd       commandType = 97
	typeSnapshotDelete    commandType = 98
	typeBuildPut          commandType = 104
	typeBuildStart        commandType = 105
	typeBuildLog          commandType = 106
	typeBuildEnd          commandType = 107
	typeTenantPut         commandType = 48
	typeTenantDelete      commandType = 49
	typeRolePut           commandType = 64
	typeRoleDelete        commandType = 65
	typeBindingPut        commandType = 66
	typeBindingDelete     commandType = 67
	typeQuotaPut          commandType = 80
	typePoolPut           commandType = 112
	typePoolDelete        commandType = 113
	typeSlotsMake         commandType = 114
	typeSlotIsReady       commandType = 115
	typeSlotsDrop         commandType = 116
	typeSlotClaim         commandType = 117
	typePoolCount         commandType = 118
	typeNodePut           commandType = 128
	typeNodeFence         commandType = 129
	typeClusterPut        commandType = 130
	typeAutopilotPut      commandType = 131
	typeSecretPut         commandType = 144
	typeSecretDelete      commandType = 145
)

// commands makes the empty command of each type.
var commands = map[commandType]func() Command{
	typeSandboxCreate:     func() Command { return new(SandboxCreate) },
	typeSandboxRunning:    func() Command { return new(SandboxRunning) },
	typeSandboxStopping:   func() Command { return new(SandboxStopping) },
	typeSandboxEnd:        func() Command { return new(SandboxEnd) },
	typeSandboxDeadline:   func() Command { return new(SandboxDeadline) },
	typeSandboxPurge:      func() Command { return new(SandboxPurge) },
	typeSandboxNetwork:    func() Command { return new(SandboxNetwork) },
	typeSandboxPaused:     func() Command { return new(SandboxPaused) },
	typeSandboxResumed:    func() Command { return new(SandboxResumed) },
	typeSandboxMove:       func() Command { return new(SandboxMove) },
	typeSandboxLimits:     func() Command { return new(SandboxLimits) },
	typeSandboxHold:       func() Command { return new(SandboxHold) },
	typeSandboxUnhold:     func() Command { return new(SandboxUnhold) },
	typeSandboxPublish:    func() Command { return new(SandboxPublish) },
	typeKeyPut:            func() Command { return new(KeyPut) },
	typeKeyDelete:         func() Command { return new(KeyDelete) },
	typeKeyBootstrap:      func() Command { return new(KeyBootstrap) },
	typeRingPut:           func() Command { return new(RingPut) },
	typeClusterPut:        func() Command { return new(ClusterPut) },
	typeAutopilotPut:      func() Command { return new(AutopilotPut) },
	typeTemplatePut:       func() Command { return new(TemplatePut) },
	typeTemplateDelete:    func() Command { return new(TemplateDelete) },
	typeTemplatePublish:   func() Command { return new(TemplatePublish) },
	typeTemplateNetwork:   func() Command { return new(TemplateNetwork) },
	typeTemplatePlacement: func() Command { return new(TemplatePlacement) },
	typeSnapshotPut:       func() Command { return new(SnapshotPut) },
	typeSnapshotEnd:       func() Command { return new(SnapshotEnd) },
	typeSnapshotDelete:    func() Command { return new(SnapshotDelete) },
	typeBuildPut:          func() Command { return new(BuildPut) },
	typeBuildStart:        func() Command { return new(BuildStart) },
	typeBuildLog:          func() Command { return new(BuildLog) },
	typeBuildEnd:          func() Command { return new(BuildEnd) },
	typeKeyChange:         func() Command { return new(KeyChange) },
	typeKeysUsed:          func() Command { return new(KeysUsed) },
	typeKeysPurge:         func() Command { return new(KeysPurge) },
	typeTenantPut:         func() Command { return new(TenantPut) },
	typeTenantDelete:      func() Command { return new(TenantDelete) },
	typeRolePut:           func() Command { return new(RolePut) },
	typeRoleDelete:        func() Command { return new(RoleDelete) },
	typeBindingPut:        func() Command { return new(BindingPut) },
	typeBindingDelete:     func() Command { return new(BindingDelete) },
	typeQuotaPut:          func() Command { return new(QuotaPut) },
	typePoolPut:           func() Command { return new(PoolPut) },
	typePoolDelete:        func() Command { return new(PoolDelete) },
	typeSlotsMake:         func() Command { return new(SlotsMake) },
	typeSlotIsReady:       func() Command { return new(SlotIsReady) },
	typeSlotsDrop:         func() Command { return new(SlotsDrop) },
	typeSlotClaim:         func() Command { return new(SlotClaim) },
	typePoolCount:         func() Command { return new(PoolCount) },
	typeNodePut:           func() Command { return new(NodePut) },
	typeNodeFence:         func() Command { return new(NodeFence) },
	typeSecretPut:         func() Command { return new(SecretPut) },
	typeSecretDelete:      func() Command { return new(SecretDelete) },
}

// Command is one change of the tables, as one Raft entry. Everything that varies between two servers (ids, times, random
// values) is in it.
type Command interface {
	kind() commandType
	check() error                      // before it enters the log
	apply(tx *writeTx) (Result, error) // on every server, with the same outcome; an error changes nothing
}

// Result is what a command left behind: the record that it made or changed, where it was one.
type Result struct {
	Sandbox  Sandbox
	Key      Key
	Template Template
	Quota    Quota
	Snapshot Snapshot
	Build    Build
	Tenant   Tenant
	Role     Role
	Binding  Binding
	Pool     Pool
	Secret   Secret
	Changed  int // records that changed
}

// SandboxCreate records that a sandbox shall exist. An id that exists is ErrExists, with the sandbox in Result.
type SandboxCreate struct {
	Sandbox Sandbox `codec:"sandbox"`
}

// SandboxRunning records a node's report that a starting, or lost, sandbox runs. Repeating it changes nothing.
type SandboxRunning struct {
	ID        api.SandboxID `codec:"id"`
	Node      api.NodeID    `codec:"node"`
	Digest    string        `codec:"digest"`
	StartedAt time.Time     `codec:"started_at"`
	Limits    *Limits       `codec:"limits"` // as the node enforces them; nil: not told
}

// SandboxStopping records that a sandbox shall end. Repeating it changes nothing; an ended one is ErrState.
type SandboxStopping struct {
	ID     api.SandboxID `codec:"id"`
	Reason string        `codec:"reason"`
}

// SandboxEnd records that sandboxes ended. One that ended already stays as it is, but a lost one may turn out to have
// stopped or failed.
type SandboxEnd struct {
	Ends []End `codec:"ends"` // 1 to MaxBatch
}

// End is the end of one sandbox.
type End struct {
	ID     api.SandboxID `codec:"id"`
	State  SandboxState  `codec:"state"` // stopped, failed or lost
	Reason string        `codec:"reason"`
	At     time.Time     `codec:"at"`
	Exit   *Exit         `codec:"exit"`
	// IfIndex is the ModifyIndex that the decision was made on: another one by now leaves the sandbox as it is. 0: always.
	IfIndex uint64 `codec:"if_index"`
}

// SandboxDeadline moves a deadline, never beyond the sandbox's MaxEndAt.
type SandboxDeadline struct {
	ID         api.SandboxID `codec:"id"`
	EndAt      time.Time     `codec:"end_at"`
	Timeout    time.Duration `codec:"timeout"`     // that EndAt came from
	ExtendOnly bool          `codec:"extend_only"` // an earlier deadline than the current one changes nothing
}

// SandboxNetwork replaces the network settings of a sandbox that has not ended.
type SandboxNetwork struct {
	ID                  api.SandboxID `codec:"id"`
	Network             []byte        `codec:"network"` // JSON
	AllowInternetAccess *bool         `codec:"allow_internet_access"`
	// RateIn and RateOut are those of the settings' shape, where Shaped says that they may be others than before.
	Shaped  bool   `codec:"shaped"`
	RateIn  int64  `codec:"rate_in"`
	RateOut int64  `codec:"rate_out"`
	Hold    uint64 `codec:"hold"` // the index of the hold that ends with it; 0: none
}

// SandboxLimits records the limits of a sandbox that has not ended, all of them, as its node enforces them now.
type SandboxLimits struct {
	ID        api.SandboxID `codec:"id"`
	CPUMillis int64         `codec:"cpu_millis"`
	MemoryMB  int64         `codec:"memory_mb"`
	Limits    Limits        `codec:"limits"`
	Hold      uint64        `codec:"hold"` // the index of the hold that ends with it; 0: none
}

// SandboxPurge forgets ended sandboxes. Others, and unknown ids, are left alone.
type SandboxPurge struct {
	IDs []api.SandboxID `codec:"ids"` // 1 to MaxBatch
}

// KeyPut records an API key, new or changed.
type KeyPut struct {
	Key Key `codec:"key"`
}

// KeyDelete revokes an API key of a tenant.
type KeyDelete struct {
	Tenant string `codec:"tenant"`
	ID     string `codec:"id"`
}

// KeyBootstrap records the first API key. It works once in the life of a cluster: after that it is ErrExists.
type KeyBootstrap struct {
	Key Key `codec:"key"`
}

// TemplatePut records a template under its name, in place of one that had it.
type TemplatePut struct {
	Template Template `codec:"template"`
}

// TemplatePublish opens a template to other tenants, or closes it.
type TemplatePublish struct {
	Tenant string `codec:"tenant"`
	Name   string `codec:"name"`
	Public bool   `codec:"public"`
}

// TemplateDelete forgets a template's name.
type TemplateDelete struct {
	Tenant string `codec:"tenant"`
	Name   string `codec:"name"`
}

func (*SandboxCreate) kind() commandType   { return typeSandboxCreate }
func (*SandboxRunning) kind() commandType  { return typeSandboxRunning }
func (*SandboxStopping) kind() commandType { return typeSandboxStopping }
func (*SandboxEnd) kind() commandType      { return typeSandboxEnd }
func (*SandboxDeadline) kind() commandType { return typeSandboxDeadline }
func (*SandboxNetwork) kind() commandType  { return typeSandboxNetwork }
func (*SandboxLimits) kind() commandType   { return typeSandboxLimits }
func (*SandboxPurge) kind() commandType    { return typeSandboxPurge }
func (*KeyPut) kind() commandType          { return typeKeyPut }
func (*KeyDelete) kind() commandType       { return typeKeyDelete }
func (*KeyBootstrap) kind() commandType    { return typeKeyBootstrap }
func (*TemplatePut) kind() commandType     { return typeTemplatePut }
func (*TemplateDelete) kind() commandType  { return typeTemplateDelete }
func (*TemplatePublish) kind() commandType { return typeTemplatePublish }
