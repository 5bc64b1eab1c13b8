package fleettest

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Pause pauses a sandbox as a node does by itself at a deadline.
func (n *Node) Pause(id api.SandboxID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pause(id, nodeapi.DepthFrozen)
}

// store keeps snapshots. Nodes may share one.
type store struct {
	mu sync.Mutex
	m  map[api.SnapshotID]nodeapi.Snapshot
}

func (s *store) get(id api.SnapshotID) (nodeapi.Snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn, ok := s.m[id]
	return sn, ok
}

func (s *store) put(sn nodeapi.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[sn.ID] = sn
}

func (s *store) remove(id api.SnapshotID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, id)
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m)
}

// ShareStore gives nodes one snapshot store, and makes their pauses checkpoints. Call it before they are connected to.
func ShareStore(nodes ...*Node) {
	for _, n := range nodes {
		n.mu.Lock()
		n.snapshots, n.self.SnapshotStore, n.checkpoints = nodes[0].snapshots, "shared", true
		n.mu.Unlock()
	}
}

// Unfit makes the node say that it can restore no snapshot, and why.
func (n *Node) Unfit(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unfit = why
}

// depthOf is how far a node pauses at a deadline.
func depthOf(onDeadline string) nodeapi.Depth {
	if onDeadline == nodeapi.DeadlinePauseFiles {
		return nodeapi.DepthFiles
	}
	return nodeapi.DepthFrozen
}

// Snapshots returns how many snapshots are in the store.
func (n *Node) Snapshots() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snapshots.count()
}

func (n *Node) pause(id api.SandboxID, depth nodeapi.Depth) {
	r, ok := n.sandboxes[id]
	if !ok || r.State != nodeapi.StateRunning {
		return
	}
	r.stopTimer()
	r.State, r.Deadline = nodeapi.StatePaused, time.Time{}
	r.Sandbox.Pause = &nodeapi.Pause{Depth: depth, At: time.Now()}
	n.emitSandbox(nodeapi.EventPaused, r)
}

func (n *Node) postPause(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.PauseRequest
	if !decode(w, r, &req) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	depth := nodeapi.DepthFrozen
	if n.checkpoints {
		depth = nodeapi.DepthCheckpointed
	}
	if req.Depth == nodeapi.DepthFiles {
		depth = req.Depth
	}
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	if rec.State != nodeapi.StateRunning && rec.State != nodeapi.StatePaused {
		fail(w, errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s", rec.ID, rec.State))
		return
	}
	n.pause(rec.ID, depth)
	if req.Store != "" && rec.Sandbox.Pause.Snapshot != req.Store {
		n.snapshots.put(nodeapi.Snapshot{ID: req.Store, Tenant: req.Tenant, Copy: true, Sandbox: rec.ID, Node: n.self.ID, Digest: rec.Digest, CreatedAt: time.Now()})
		p := *rec.Sandbox.Pause
		p.Depth, p.Snapshot = nodeapi.DepthCheckpointed, req.Store
		rec.Sandbox.Pause = &p
		n.emitSandbox(nodeapi.EventPaused, rec)
	}
	answer(w, rec.Sandbox)
}

func (n *Node) postResume(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.ResumeRequest
	if !decode(w, r, &req) {
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
	if req.Network != nil && rec.State == nodeapi.StatePaused {
		n.setNetwork(rec, req.Network)
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
	if !decode(w, r, &req) {
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
	n.snapshots.put(s)
	answer(w, s)
}

func (n *Node) getSnapshot(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.snapshots.get(api.SnapshotID(r.PathValue("id")))
	if !ok {
		fail(w, errorf(http.StatusNotFound, api.CodeNotFound, "snapshot %s is not in the store", r.PathValue("id")))
		return
	}
	s.Unfit = n.unfit
	answer(w, s)
}

func (n *Node) deleteSnapshot(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snapshots.remove(api.SnapshotID(r.PathValue("id")))
	w.WriteHeader(http.StatusNoContent)
}

// postCollect removes the copies that are not to be kept, and counts how often it was asked.
func (n *Node) postCollect(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.CollectRequest
	if !decode(w, r, &req) {
		return
	}
	n.mu.Lock()
	n.collects++
	n.mu.Unlock()
	answer(w, nodeapi.Collected{Copies: n.snapshots.collect(req)})
}

// Collects returns how often the node was asked to collect.
func (n *Node) Collects() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.collects
}

// AddCopy puts an old copy of a paused sandbox that nobody knows into the store.
func (n *Node) AddCopy(id api.SnapshotID, tenant string) {
	n.snapshots.put(nodeapi.Snapshot{ID: id, Tenant: tenant, Copy: true})
}

// collectAge is how old a copy is that may go, as with a real node: its record may be on its way.
const collectAge = time.Hour

func (s *store) collect(req nodeapi.CollectRequest) (copies int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sn := range s.m {
		if sn.Copy && time.Since(sn.CreatedAt) >= collectAge && sn.Tenant == req.Tenant && !slices.Contains(req.Keep, id) {
			delete(s.m, id)
			copies++
		}
	}
	return copies
}
