package fleettest

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Pause pauses a sandbox as a node does by itself at a deadline.
func (n *Node) Pause(id api.SandboxID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pause(id)
}

// Snapshots returns how many snapshots are in the store.
func (n *Node) Snapshots() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.snapshots)
}

func (n *Node) pause(id api.SandboxID) {
	r, ok := n.sandboxes[id]
	if !ok || r.State != nodeapi.StateRunning {
		return
	}
	r.stopTimer()
	r.State, r.Deadline = nodeapi.StatePaused, time.Time{}
	r.Sandbox.Pause = &nodeapi.Pause{Depth: nodeapi.DepthFrozen, At: time.Now()}
	n.emitSandbox(nodeapi.EventPaused, r)
}

func (n *Node) postPause(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	if rec.State != nodeapi.StateRunning && rec.State != nodeapi.StatePaused {
		fail(w, errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s", rec.ID, rec.State))
		return
	}
	n.pause(rec.ID)
	answer(w, rec.Sandbox)
}

func (n *Node) postResume(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.ResumeRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		fail(w, errorf(http.StatusBadRequest, api.CodeInvalid, "body: %v", err))
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	if rec.State == nodeapi.StatePaused {
		n.resumed[rec.ID]++
	}
	rec.State, rec.Deadline, rec.Sandbox.Pause = nodeapi.StateRunning, req.Deadline, nil
	n.arm(rec)
	n.emitSandbox(nodeapi.EventResumed, rec)
	answer(w, rec.Sandbox)
}

// Resumed returns how often a sandbox was resumed.
func (n *Node) Resumed(id api.SandboxID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.resumed[id]
}

func (n *Node) postSnapshot(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.SnapshotRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		fail(w, errorf(http.StatusBadRequest, api.CodeInvalid, "body: %v", err))
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	s := nodeapi.Snapshot{
		ID: req.ID, Tenant: req.Tenant, Parent: req.Parent, Sandbox: rec.ID, Node: n.self.ID, CreatedAt: time.Now(),
		Template: rec.Template, Digest: rec.Digest, Limits: rec.Limits, Bytes: 10 << 20, StoredBytes: 1 << 20,
	}
	n.snapshots[req.ID] = s
	answer(w, s)
}

func (n *Node) getSnapshot(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.snapshots[api.SnapshotID(r.PathValue("id"))]
	if !ok {
		fail(w, errorf(http.StatusNotFound, api.CodeNotFound, "snapshot %s is not in the store", r.PathValue("id")))
		return
	}
	answer(w, s)
}

func (n *Node) deleteSnapshot(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.snapshots, api.SnapshotID(r.PathValue("id")))
	w.WriteHeader(http.StatusNoContent)
}
