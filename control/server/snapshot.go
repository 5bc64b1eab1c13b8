package server

import (
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

// takeSnapshot is POST /v1/snapshots.
func (s *Server) takeSnapshot(w http.ResponseWriter, r *http.Request) error {
	var req api.SnapshotRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	id, err := api.ParseSandboxID(string(req.SandboxID))
	if err != nil {
		return invalid("sandbox_id: %s", err)
	}
	sn, err := s.cfg.Lifecycle.TakeSnapshot(r.Context(), lifecycle.SnapshotParams{
		Caller: caller(r), Sandbox: id, Name: req.Name, Description: req.Description, Labels: req.Labels,
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, snapshotView(sn))
	return nil
}

// snapshots is GET /v1/snapshots.
func (s *Server) snapshots(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	of, name := q.str("sandbox_id", state.MaxTemplateName), q.str("name", state.MaxTemplateName)
	label, st := q.str("label", maxQueryBytes), q.str("state", state.MaxTemplateName)
	if q.err != nil {
		return q.err
	}
	key, value, valued := strings.Cut(label, "=")
	all, err := s.cfg.Lifecycle.Snapshots(r.Context(), tenant(r))
	if err != nil {
		return err
	}
	out := []api.Snapshot{}
	for _, sn := range all {
		got, has := sn.Labels[key]
		switch {
		case of != "" && string(sn.Sandbox) != of,
			name != "" && sn.Name != name && sn.Name+":"+sn.Tag != name,
			st != "" && string(sn.State) != st,
			label != "" && (!has || valued && got != value):
			continue
		}
		out = append(out, snapshotView(sn))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// snapshot is GET /v1/snapshots/{snapshot}.
func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) error {
	sn, err := s.cfg.Lifecycle.Snapshot(r.Context(), tenant(r), r.PathValue("snapshot"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, snapshotView(sn))
	return nil
}

// deleteSnapshot is DELETE /v1/snapshots/{snapshot}.
func (s *Server) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	force := q.str("force", 8)
	if q.err != nil {
		return q.err
	}
	if force != "" && force != "true" && force != "false" {
		return invalid("force is %.20q, true and false are allowed", force)
	}
	if err := s.cfg.Lifecycle.DeleteSnapshot(r.Context(), tenant(r), r.PathValue("snapshot"), force == "true"); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func snapshotView(sn state.Snapshot) api.Snapshot {
	v := api.Snapshot{
		ID: sn.ID, Name: sn.Name, Tag: sn.Tag, Description: sn.Description, Labels: sn.Labels, SandboxID: sn.Sandbox, Parent: sn.Parent,
		NodeID: sn.Node, Memory: sn.Memory, State: string(sn.State), Reason: sn.Reason, Template: sn.Template, Digest: sn.Digest,
		Bytes: sn.Bytes, StoredBytes: sn.Stored, CreatedAt: sn.CreatedAt.UTC(),
	}
	if !sn.ReadyAt.IsZero() {
		at := sn.ReadyAt.UTC()
		v.ReadyAt = &at
	}
	return v
}
