package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

// e2bSnapshot is POST /sandboxes/{id}/snapshots. The sandbox goes on as it was.
func (s *Server) e2bSnapshot(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NewSnapshot
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	sn, err := s.cfg.Lifecycle.TakeSnapshot(r.Context(), lifecycle.SnapshotParams{Caller: caller(r), Sandbox: id, Name: req.Name})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, e2bSnapshotInfo(sn))
	return nil
}

// e2bSnapshots is GET /snapshots: a page of those that are ready, the newest first.
func (s *Server) e2bSnapshots(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	of, name := q.str("sandboxID", state.MaxTemplateName), q.str("name", state.MaxTemplateName)
	limit := int(q.integer("limit", maxE2BLimit, 1, maxE2BLimit))
	after := q.str("nextToken", maxTokenBytes)
	if q.err != nil {
		return q.err
	}
	if of != "" {
		id, err := api.ParseSandboxID(of)
		if err != nil {
			return invalid("sandboxID: %s", err)
		}
		of = string(id)
	}
	all, err := s.cfg.Lifecycle.Snapshots(r.Context(), tenant(r))
	if err != nil {
		return err
	}
	out := []api.SnapshotInfo{}
	found := after == ""
	for _, sn := range all {
		if !found { // the token is the last snapshot of the page before; one that was deleted meanwhile ends the list
			found = string(sn.ID) == after
			continue
		}
		if sn.State != state.SnapshotReady || (of != "" && string(sn.Sandbox) != of) || (name != "" && sn.Name != name && sn.Name+":"+sn.Tag != name) {
			continue
		}
		if len(out) == limit {
			w.Header().Set("X-Next-Token", string(out[limit-1].SnapshotID))
			break
		}
		out = append(out, e2bSnapshotInfo(sn))
	}
	if !found {
		return invalid("nextToken is not one that this list gave, or its snapshot is gone")
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func e2bSnapshotInfo(sn state.Snapshot) api.SnapshotInfo {
	info := api.SnapshotInfo{SnapshotID: sn.ID, Names: []string{}}
	if sn.Name != "" {
		info.Names = []string{sn.Name + ":" + sn.Tag}
	}
	return info
}
