package state

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// SnapshotState is the state of a snapshot as the control service knows it.
type SnapshotState string

// The states. A failed snapshot keeps its reason until it is deleted.
const (
	SnapshotMaking SnapshotState = "making"
	SnapshotReady  SnapshotState = "ready"
	SnapshotFailed SnapshotState = "failed"
)

// Snapshot is a sandbox's memory and files at one moment, from which sandboxes can be made. What it holds is in the store of
// the nodes; this is who owns it and where it came from.
type Snapshot struct {
	ID     api.SnapshotID `codec:"id"`
	Tenant string         `codec:"tenant"`
	// Name is what it is found by besides its id, unique for a tenant: the last one made under a name has it. Empty: none.
	Name        string            `codec:"name"`
	Tag         string            `codec:"tag"` // of the name; "default" where none was given
	Description string            `codec:"description"`
	Labels      map[string]string `codec:"labels"`

	Sandbox api.SandboxID  `codec:"sandbox"` // that it was taken of
	Parent  api.SnapshotID `codec:"parent"`  // that the sandbox was made from; empty: its template
	Node    api.NodeID     `codec:"node"`    // that made it
	Memory  bool           `codec:"memory"`  // false: files only
	// Store is the snapshot store that has it: every node with that store can restore it. Empty: Node alone can.
	Store string `codec:"store"`

	State  SnapshotState `codec:"state"`
	Reason string        `codec:"reason"` // why it failed, for people

	// What the sandbox was, and a sandbox made from it is.
	Template  string            `codec:"template"`
	Digest    string            `codec:"digest"`
	CPUMillis int64             `codec:"cpu_millis"`
	MemoryMB  int64             `codec:"memory_mb"`
	DiskMB    int64             `codec:"disk_mb"`
	EnvVars   map[string]string `codec:"env_vars"`
	// TemplateNetwork is the sandbox's.
	TemplateNetwork NetworkPolicy `codec:"template_network"`

	Bytes  int64 `codec:"bytes"`  // of memory and files together, before anything is shared or compressed
	Stored int64 `codec:"stored"` // bytes that it added to the store
	Pages  int64 `codec:"pages"`  // of memory, those that hold anything
	Files  int64 `codec:"files"`  // open files of its processes

	CreatedAt time.Time `codec:"created_at"`
	CreatedBy string    `codec:"created_by"` // API key
	ReadyAt   time.Time `codec:"ready_at"`

	// Creator is the run of a control service that is making it, as Sandbox.Creator.
	Creator string `codec:"creator"`
	// Passing is that of a fork: it goes when the copies run, or when the run that makes them has died.
	Passing bool `codec:"passing"`

	CreateIndex uint64 `codec:"create_index"`
	ModifyIndex uint64 `codec:"modify_index"`
}
