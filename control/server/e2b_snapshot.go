package server

import (
	"net/http"
	"strings"

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
	var last api.SnapshotID // of out
	found := after == ""
	for _, sn := range all {
		if !found { // the token is the last snapshot of the page before; one that was deleted meanwhile ends the list
			found = string(sn.ID) == after
			continue
		}
		if sn.State != state.SnapshotReady || (of != "" && string(sn.Sandbox) != of) || (name != "" && !snapshotGoesBy(sn, name)) {
			continue
		}
		if len(out) == limit {
			w.Header().Set("X-Next-Token", string(last))
			break
		}
		out, last = append(out, e2bSnapshotInfo(sn)), sn.ID
	}
	if !found {
		return invalid("nextToken is not one that this list gave, or its snapshot is gone")
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// snapshotGoesBy reports whether the list's parameter name means sn: its id or its name, each with its tag or without, and with its tenant
// or without.
func snapshotGoesBy(sn state.Snapshot, name string) bool {
	info := e2bSnapshotInfo(sn)
	if name == info.SnapshotID || name == string(sn.ID) || name == string(sn.ID)+":"+defaultTag {
		return true
	}
	name = strings.TrimPrefix(name, sn.Tenant+"/")
	return sn.Name != "" && (name == sn.Name || name == sn.Name+":"+sn.Tag)
}

// defaultTag is the tag that a name without one means.
const defaultTag = "default"

// e2bSnapshotInfo is a snapshot in the contract's words: its identifier has a tag, and is its name with its tenant where it has a name.
func e2bSnapshotInfo(sn state.Snapshot) api.SnapshotInfo {
	if sn.Name == "" {
		return api.SnapshotInfo{SnapshotID: string(sn.ID) + ":" + defaultTag, Names: []string{}}
	}
	full := sn.Tenant + "/" + sn.Name + ":" + sn.Tag
	return api.SnapshotInfo{SnapshotID: full, Names: []string{full}}
}
