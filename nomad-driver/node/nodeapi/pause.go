package nodeapi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// StatePaused is a sandbox whose processes stand still, or are kept on disk: Sandbox.Pause says which. It has no deadline, answers
// no exec, file or port request (409 with api.CodeNotRunning), and goes on where it was with a resume.
const StatePaused State = "paused"

// Error codes of pauses and snapshots.
const (
	// CodeUncheckpointable tells that something in the sandbox cannot be checkpointed; the message names it and its process. The
	// sandbox goes on. Status 409.
	CodeUncheckpointable = "uncheckpointable"
	// CodeIncompatible tells that a snapshot cannot be restored on this node: another architecture, an older kernel or CRIU, a
	// processor without a feature, a template that it does not have. Status 409.
	CodeIncompatible = "incompatible"
	// CodeBadSnapshot tells that a snapshot's manifest is not one that was sealed, or that its data is not what the manifest says.
	// Status 422.
	CodeBadSnapshot = "bad_snapshot"
	// CodeNotPaused tells that a sandbox that should be resumed, or stored as it is paused, is not paused. Status 409.
	CodeNotPaused = "not_paused"
)

// Depth is how far a pause goes.
type Depth string

const (
	// DepthFrozen keeps the processes in memory, stopped. Both ways take about a millisecond.
	DepthFrozen Depth = "frozen"
	// DepthCheckpointed keeps processes and memory on disk: nothing of it runs, and its memory is free.
	DepthCheckpointed Depth = "checkpointed"
	// DepthFiles keeps the files alone: the processes are ended, as by a power cut after everything was written, and a resume boots
	// the sandbox anew.
	DepthFiles Depth = "files"
)

// What a node does with a sandbox at its deadline: CreateRequest.OnDeadline.
const (
	DeadlineStop  = "stop"  // ends it; where empty, too
	DeadlinePause = "pause" // pauses it; one that cannot be checkpointed is kept frozen
	// DeadlinePauseFiles keeps its files and ends its processes.
	DeadlinePauseFiles = "pause_files"
)

// PauseRequest is POST /v1/sandboxes/{id}/pause, answered with Sandbox once its processes stand still. Of a sandbox that is paused
// already it can deepen the pause. What cannot be checkpointed is 409 with CodeUncheckpointable before anything stops.
type PauseRequest struct {
	// Depth is DepthCheckpointed where empty: frozen at once, and checkpointed in the background. A checkpoint that fails leaves
	// the sandbox frozen, with Pause.Failure saying why.
	Depth Depth `json:"depth,omitempty"`
	// Wait answers only when Depth is reached. A checkpoint that fails is an error then, and a sandbox that ran before runs again.
	Wait bool `json:"wait,omitempty"`
	// Store also puts the checkpoint into the node's snapshot store under this id, so that any node with the store can restore
	// it; empty: it stays on this node.
	Store api.SnapshotID `json:"store,omitempty"`
	// StoreOnly pauses nothing: of a sandbox that runs it is 409 with CodeNotPaused. With Store.
	StoreOnly bool `json:"store_only,omitempty"`
	// Tenant within which equal chunks of the store are kept once. With Store.
	Tenant string `json:"tenant,omitempty"`
}

// ResumeRequest is POST /v1/sandboxes/{id}/resume, answered with Sandbox once it runs again. Of one that runs it changes the
// deadline only, so that a repeated request is harmless; of two at once one resumes and both get the sandbox.
type ResumeRequest struct {
	Deadline time.Time `json:"deadline,omitzero"` // zero: none
	// Fresh boots a paused sandbox anew from its files, and gives up what was kept of its processes.
	Fresh bool `json:"fresh,omitempty"`
	// Network is what it may reach from then on; nil: what it could before. Of one that runs it changes nothing.
	Network *Network `json:"network,omitempty"`
}

// Pause says how a sandbox is paused.
type Pause struct {
	Depth Depth     `json:"depth"`
	At    time.Time `json:"at"`
	// Checkpointing tells that a checkpoint is being made in the background.
	Checkpointing bool `json:"checkpointing,omitempty"`
	// Failure says why the last checkpoint failed; the sandbox stays frozen.
	Failure string `json:"failure,omitempty"`
	// Snapshot is the id in the store, once the checkpoint is there too.
	Snapshot api.SnapshotID `json:"snapshot,omitempty"`
	Bytes    int64          `json:"bytes,omitempty"` // of the checkpoint on the node's disk
}

// Events of pauses and snapshots.
const (
	EventPaused      EventType = "paused"      // Sandbox.Pause says how; also when the depth changes
	EventResumed     EventType = "resumed"     // runs again
	EventSnapshotted EventType = "snapshotted" // a snapshot of it is in the store
)

// SnapshotRequest is POST /v1/sandboxes/{id}/snapshot, answered with Snapshot when it is durable in the store. The sandbox, where
// it runs, stands still only while its memory is copied. Repeating a request with the same id returns the snapshot that exists.
type SnapshotRequest struct {
	ID       api.SnapshotID    `json:"id"`
	Tenant   string            `json:"tenant,omitempty"`
	Parent   api.SnapshotID    `json:"parent,omitempty"` // kept as given
	Metadata map[string]string `json:"metadata,omitempty"`
	// Copy tells that nobody asked for it by name: it is the stored copy of a sandbox that is paused, and of no use after that.
	Copy bool `json:"copy,omitempty"`
}

// CollectRequest is POST /v1/snapshots/collect: what no snapshot of a tenant needs is removed from the store, in the steps that uploads of
// other nodes allow for, and so are copies of paused sandboxes that are older than CopyGrace and not among Keep.
type CollectRequest struct {
	Tenant string           `json:"tenant,omitempty"`
	Keep   []api.SnapshotID `json:"keep,omitempty"`
}

// CopyGrace is how long a copy stays that nobody knows: who asked for it may not have recorded it yet.
const CopyGrace = time.Hour

// Collected is what was removed.
type Collected struct {
	Copies int `json:"copies"`
	Packs  int `json:"packs"` // of pages
}

// Snapshot is what the store knows of a snapshot: GET /v1/snapshots/{id}?tenant=T; GET /v1/snapshots?tenant=T lists them, DELETE
// removes one. Chunks that other snapshots share stay.
type Snapshot struct {
	ID        api.SnapshotID    `json:"id"`
	Tenant    string            `json:"tenant,omitempty"`
	Parent    api.SnapshotID    `json:"parent,omitempty"`
	Sandbox   api.SandboxID     `json:"sandbox"`
	Node      api.NodeID        `json:"node"`
	CreatedAt time.Time         `json:"created_at"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Copy      bool              `json:"copy,omitempty"`

	Template string `json:"template"`
	Digest   string `json:"template_digest"`
	Limits   Limits `json:"limits"`
	Profile  string `json:"profile"`

	Bytes       int64         `json:"bytes"`        // of memory, files and process images
	StoredBytes int64         `json:"stored_bytes"` // what it added to the store
	Frozen      time.Duration `json:"frozen"`       // nanoseconds for which the sandbox stood still
	Needs       Needs         `json:"needs"`
	// Unfit says why the node that was asked cannot restore it; empty: it can. Of GET /v1/snapshots/{id} alone.
	Unfit string `json:"unfit,omitempty"`
}

// Needs are what a node must have to restore a snapshot.
type Needs struct {
	Arch   string   `json:"arch"`
	Kernel string   `json:"kernel"` // release on which it was made: the same or a newer one restores it
	CRIU   string   `json:"criu"`   // version that made it: the same or a newer one restores it
	CPU    []string `json:"cpu"`    // features that programs may have found
}

// Restore makes a create request start from a snapshot in place of a template: CreateRequest.Restore. Template must be empty or the
// snapshot's own; hostname, env, user, cwd, main and profile are the snapshot's unless the field says otherwise here.
type Restore struct {
	Snapshot api.SnapshotID `json:"snapshot"`
	Tenant   string         `json:"tenant,omitempty"`
	// Same tells that it is the same sandbox that goes on, elsewhere: machine id and host name stay. Otherwise it is a copy,
	// which gets its own, and whose programs that ask the kernel for random numbers get other ones.
	Same bool `json:"same,omitempty"`
}

// Pause pauses a sandbox.
func (c *Client) Pause(ctx context.Context, id api.SandboxID, r PauseRequest) (Sandbox, error) {
	var sb Sandbox
	err := c.call(ctx, http.MethodPost, sandboxPath(id, "/pause"), nil, r, &sb)
	return sb, err
}

// Resume lets a paused sandbox go on.
func (c *Client) Resume(ctx context.Context, id api.SandboxID, r ResumeRequest) (Sandbox, error) {
	var sb Sandbox
	err := c.call(ctx, http.MethodPost, sandboxPath(id, "/resume"), nil, r, &sb)
	return sb, err
}

// Snapshot makes a snapshot of a running or paused sandbox.
func (c *Client) Snapshot(ctx context.Context, id api.SandboxID, r SnapshotRequest) (Snapshot, error) {
	var s Snapshot
	err := c.call(ctx, http.MethodPost, sandboxPath(id, "/snapshot"), nil, r, &s)
	return s, err
}

// Snapshots lists the snapshots of a tenant in the node's store, newest first.
func (c *Client) Snapshots(ctx context.Context, tenant string) ([]Snapshot, error) {
	var all []Snapshot
	err := c.call(ctx, http.MethodGet, "/v1/snapshots", url.Values{"tenant": {tenant}}, nil, &all)
	return all, err
}

// GetSnapshot returns one snapshot.
func (c *Client) GetSnapshot(ctx context.Context, tenant string, id api.SnapshotID) (Snapshot, error) {
	var s Snapshot
	err := c.call(ctx, http.MethodGet, snapshotPath(id), url.Values{"tenant": {tenant}}, nil, &s)
	return s, err
}

// DeleteSnapshot removes a snapshot. One that is not there is no error.
func (c *Client) DeleteSnapshot(ctx context.Context, tenant string, id api.SnapshotID) error {
	return c.call(ctx, http.MethodDelete, snapshotPath(id), url.Values{"tenant": {tenant}}, nil, nil)
}

// CollectSnapshots removes what a tenant's snapshots do not need any more.
func (c *Client) CollectSnapshots(ctx context.Context, req CollectRequest) (Collected, error) {
	var out Collected
	return out, c.call(ctx, http.MethodPost, "/v1/snapshots/collect", nil, req, &out)
}

// SnapshotKey is the key of a snapshot store, as the control service keeps it.
type SnapshotKey struct {
	Versions []SnapshotKeyVersion `json:"versions"` // all that are good; the highest one is for what is stored now
}

// SnapshotKeyVersion is one version of it.
type SnapshotKeyVersion struct {
	Version int    `json:"version"` // from 1 on
	Secret  []byte `json:"secret"`  // 32 bytes
}

// PutSnapshotKey gives a node that takes it the key of its snapshot store, in place of the one before.
func (c *Client) PutSnapshotKey(ctx context.Context, key SnapshotKey) error {
	return c.call(ctx, http.MethodPut, "/v1/snapshot-key", nil, key, nil)
}

func snapshotPath(id api.SnapshotID) string { return "/v1/snapshots/" + url.PathEscape(string(id)) }
