package fleettest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func (n *Node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/node", n.getNode)
	mux.HandleFunc("GET /v1/events", n.getEvents)
	mux.HandleFunc("POST /v1/sandboxes", n.create)
	mux.HandleFunc("GET /v1/sandboxes", n.list)
	mux.HandleFunc("GET /v1/sandboxes/{id}", n.with(func(r *record) any { return r.Sandbox }))
	mux.HandleFunc("DELETE /v1/sandboxes/{id}", n.delete)
	mux.HandleFunc("POST /v1/sandboxes/{id}/stop", n.stop)
	mux.HandleFunc("PUT /v1/sandboxes/{id}/deadline", n.deadline)
	mux.HandleFunc("PUT /v1/sandboxes/{id}/limits", n.limits)
	mux.HandleFunc("PUT /v1/sandboxes/{id}/network", n.putNetwork)
	mux.HandleFunc("GET /v1/sandboxes/{id}/published", n.getPublished)
	mux.HandleFunc("PUT /v1/sandboxes/{id}/published", n.putPublished)
	mux.HandleFunc("GET /v1/sandboxes/{id}/health", n.with(func(r *record) any {
		return nodeapi.HealthReply{
			ID: r.ID, Healthy: r.State == nodeapi.StateRunning, State: r.State,
			Uptime: time.Since(r.StartedAt), InitVersion: Version,
		}
	}))
	mux.HandleFunc("POST /v1/sandboxes/{id}/claim", n.postClaim)
	mux.HandleFunc("POST /v1/claims", n.postClaims)
	mux.HandleFunc("POST /v1/sandboxes/{id}/pause", n.postPause)
	mux.HandleFunc("POST /v1/sandboxes/{id}/resume", n.postResume)
	mux.HandleFunc("POST /v1/sandboxes/{id}/snapshot", n.postSnapshot)
	mux.HandleFunc("POST /v1/snapshots/collect", n.postCollect)
	mux.HandleFunc("PUT /v1/snapshot-key", n.putSnapshotKey)
	mux.HandleFunc("GET /v1/snapshots/{id}", n.getSnapshot)
	mux.HandleFunc("DELETE /v1/snapshots/{id}", n.deleteSnapshot)
	mux.HandleFunc("GET /v1/templates", n.listTemplates)
	mux.HandleFunc("GET /v1/templates/{name}", n.getTemplate)
	for _, method := range []string{"PUT", "POST"} {
		mux.HandleFunc(method+" /v1/templates/{name}", n.importTemplate)
	}
	mux.HandleFunc("GET /v1/templates/{name}/export", n.exportTemplate)
	mux.HandleFunc("DELETE /v1/templates/{name}", n.removeTemplate)
	mux.HandleFunc("DELETE /v1/templates/{name}/own/{tenant}", n.deleteOwnTemplate)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hook := n.hook().Call; hook != nil {
			if err := hook(r.Method, r.URL.Path); err != nil {
				fail(w, err)
				return
			}
		}
		mux.ServeHTTP(w, r)
	})
}

func (n *Node) hook() Hooks {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hooks
}

func (n *Node) getNode(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	self := n.self
	self.Templates = n.templateList()
	for _, r := range n.sandboxes {
		if r.State == nodeapi.StateRunning {
			self.Running++
		}
	}
	answer(w, self)
}

// getEvents sends what happened after ?since, or all that exist where it cannot go on there.
func (n *Node) getEvents(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.ParseUint(r.URL.Query().Get("since"), 10, 64)
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	n.mu.Lock()
	if r.URL.Query().Get("epoch") != n.self.Epoch || since > n.seq {
		since = n.seq
		e := nodeapi.Event{Type: nodeapi.EventSync, Epoch: n.self.Epoch, Seq: n.seq, Time: time.Now()}
		for _, s := range n.sandboxes {
			e.Sandboxes = append(e.Sandboxes, s.Sandbox)
		}
		_ = enc.Encode(e)
	}
	beat := time.NewTicker(n.Beat)
	defer beat.Stop()
	for {
		for _, e := range n.events {
			if e.Seq > since {
				_ = enc.Encode(e)
				since = e.Seq
			}
		}
		epoch, changed := n.self.Epoch, n.changed
		n.mu.Unlock()
		if rc.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		case <-beat.C:
			n.mu.Lock()
			h := nodeapi.Health{Healthy: n.self.Healthy, Reason: n.self.Reason, Running: n.self.Running, DiskFree: n.self.DiskFree, Checks: n.self.Checks}
			n.mu.Unlock()
			_ = enc.Encode(nodeapi.Event{Type: nodeapi.EventBeat, Epoch: epoch, Seq: since, Time: time.Now(), Health: &h})
		}
		n.mu.Lock()
	}
}

func (n *Node) create(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.CreateRequest
	if !decode(w, r, &req) {
		return
	}
	n.mu.Lock()
	for old, ok := n.sandboxes[req.ID]; ok; old, ok = n.sandboxes[req.ID] {
		if old.State != nodeapi.StateStarting {
			defer n.mu.Unlock()
			answer(w, old.Sandbox)
			return
		}
		changed := n.changed // another call makes it
		n.mu.Unlock()
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
		n.mu.Lock()
	}
	if _, ok := n.template(req.Template); !ok {
		defer n.mu.Unlock()
		fail(w, errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %q is not on this node", req.Template))
		return
	}
	if req.Restore != nil {
		if _, ok := n.snapshots.get(req.Restore.Snapshot); !ok {
			defer n.mu.Unlock()
			fail(w, errorf(http.StatusNotFound, api.CodeNotFound, "snapshot %s is not in the store", req.Restore.Snapshot))
			return
		}
	}
	n.begin(req)
	hooks := n.hooks
	n.mu.Unlock()
	if hooks.BeforeCreate != nil {
		if err := hooks.BeforeCreate(r.Context(), req); err != nil {
			n.mu.Lock()
			defer n.mu.Unlock()
			delete(n.sandboxes, req.ID)
			n.emit(nodeapi.Event{Type: nodeapi.EventRemoved, ID: req.ID})
			fail(w, err)
			return
		}
	}
	n.mu.Lock()
	made := n.sandboxes[req.ID]
	if made == nil { // deleted meanwhile
		n.mu.Unlock()
		fail(w, errorf(http.StatusConflict, api.CodeConflict, "sandbox %s was removed", req.ID))
		return
	}
	n.run(req.ID)
	s := made.Sandbox
	n.mu.Unlock()
	if hooks.AfterCreate != nil {
		if err := hooks.AfterCreate(req); err != nil {
			fail(w, err)
			return
		}
	}
	answer(w, s)
}

func (n *Node) list(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []nodeapi.Sandbox{}
	for _, r := range n.sandboxes {
		out = append(out, r.Sandbox)
	}
	answer(w, out)
}

// with answers with what f makes of the sandbox.
func (n *Node) with(f func(*record) any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if rec := n.find(w, r); rec != nil {
			answer(w, f(rec))
		}
	}
}

func (n *Node) find(w http.ResponseWriter, r *http.Request) *record {
	rec, ok := n.sandboxes[api.SandboxID(r.PathValue("id"))]
	if !ok {
		fail(w, errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s is not here", r.PathValue("id")))
		return nil
	}
	return rec
}

func (n *Node) delete(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec := n.find(w, r); rec != nil {
		n.remove(rec.ID)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (n *Node) stop(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec := n.find(w, r); rec != nil {
		n.end(rec.ID, nodeapi.Exit{Reason: nodeapi.ExitStopped})
		answer(w, rec.Sandbox)
	}
}

func (n *Node) deadline(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.DeadlineRequest
	if !decode(w, r, &req) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec := n.find(w, r); rec != nil {
		rec.Deadline = req.Deadline
		n.arm(rec)
		n.emitSandbox(nodeapi.EventUpdated, rec)
		answer(w, rec.Sandbox)
	}
}

// limits does what a node does: what is zero stays, and one of io is lifted with -1.
func (n *Node) limits(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.LimitsRequest
	if !decode(w, r, &req) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	now, l := &rec.Limits, req.Limits
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&now.CPUMillis, l.CPUMillis}, {&now.CPUWeight, l.CPUWeight}, {&now.MemoryBytes, l.MemoryBytes}, {&now.PIDs, l.PIDs},
		{&now.DiskBytes, l.DiskBytes}, {&now.DiskInodes, l.DiskInodes}, {&now.IOReadBytes, l.IOReadBytes},
		{&now.IOWriteBytes, l.IOWriteBytes}, {&now.IOReadOps, l.IOReadOps}, {&now.IOWriteOps, l.IOWriteOps},
	} {
		if f.from != 0 {
			*f.to = max(f.from, 0)
		}
	}
	n.emitSandbox(nodeapi.EventUpdated, rec)
	answer(w, rec.Sandbox)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, err error) {
	e := api.AsError(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code)
	_ = json.NewEncoder(w).Encode(e)
}

// decode reads a request's body into v, or answers why not.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(r.Body).Decode(v)
	if err != nil {
		fail(w, errorf(http.StatusBadRequest, api.CodeInvalid, "body: %v", err))
	}
	return err == nil
}
