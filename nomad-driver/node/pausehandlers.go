package node

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func (n *Node) postPause(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.PauseRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.Pause(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

func (n *Node) postResume(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.ResumeRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.Resume(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}
