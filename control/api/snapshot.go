package api

import "time"

// The first types of this file are those of the E2B contract.

// PauseRequest is the body of POST /sandboxes/{id}/pause; it may be missing.
type PauseRequest struct {
	Memory *bool `json:"memory,omitempty"` // true where missing: processes and memory are kept too
}

// ResumeRequest is the body of POST /sandboxes/{id}/resume.
type ResumeRequest struct {
	Timeout   *int64 `json:"timeout,omitempty"` // seconds; 15 where missing
	AutoPause *bool  `json:"autoPause,omitempty"`
	Memory    *bool  `json:"memory,omitempty"`
}

// ForkRequest is the body of POST /sandboxes/{id}/fork.
type ForkRequest struct {
	Timeout *int64 `json:"timeout,omitempty"` // seconds; 15 where missing
	Count   *int64 `json:"count,omitempty"`   // 1 to 100; 1 where missing
}

// ForkResult is one copy of a fork, or why there is none.
type ForkResult struct {
	Sandbox *SandboxAccess `json:"sandbox,omitempty"`
	Error   *Error         `json:"error,omitempty"`
}

// NewSnapshot is the body of POST /sandboxes/{id}/snapshots; it may be missing.
type NewSnapshot struct {
	Name string `json:"name,omitempty"` // "name" or "name:tag"
}

// SnapshotInfo is the contract's view of a snapshot. Its identifier, "tenant/name:tag" or "id:default", can be used as a templateID.
type SnapshotInfo struct {
	SnapshotID string   `json:"snapshotID"`
	Names      []string `json:"names"`
}

// SnapshotRequest is the body of POST /v1/snapshots.
type SnapshotRequest struct {
	SandboxID   SandboxID         `json:"sandbox_id"`
	Name        string            `json:"name,omitempty"` // "name" or "name:tag"
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// Snapshot is a sandbox's memory and files at one moment, from which sandboxes can be made.
type Snapshot struct {
	ID          SnapshotID        `json:"id"`
	Name        string            `json:"name,omitempty"`
	Tag         string            `json:"tag,omitempty"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	SandboxID   SandboxID         `json:"sandbox_id"`       // that it was taken of
	Parent      SnapshotID        `json:"parent,omitempty"` // that the sandbox was made from
	NodeID      NodeID            `json:"node_id"`          // that made it
	Memory      bool              `json:"memory"`           // false: files only
	State       string            `json:"state"`            // making, ready or failed
	Reason      string            `json:"reason,omitempty"` // why it failed
	Template    string            `json:"template"`
	Digest      string            `json:"template_digest"`
	Bytes       int64             `json:"bytes"`        // of memory and files
	StoredBytes int64             `json:"stored_bytes"` // that it added to the store
	CreatedAt   time.Time         `json:"created_at"`
	ReadyAt     *time.Time        `json:"ready_at"`
}
