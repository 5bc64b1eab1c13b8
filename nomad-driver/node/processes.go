package node

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// requestGuest returns the guest of the running sandbox that a request is about.
func (n *Node) requestGuest(r *http.Request) (guestClient, *box, error) {
	id, err := pathID(r)
	if err != nil {
		return nil, nil, err
	}
	return n.guest(id)
}

func (n *Node) getProcesses(w http.ResponseWriter, r *http.Request) error {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return err
	}
	list, err := g.List(r.Context())
	if err != nil {
		return guestGone(b, err)
	}
	if list == nil {
		list = []guest.ProcessInfo{}
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (n *Node) postProcess(w http.ResponseWriter, r *http.Request) error {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return err
	}
	var req nodeapi.ExecRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if err := checkStart("process", req.Start); err != nil {
		return err
	}
	p, err := g.Start(r.Context(), req.Start)
	if err != nil {
		return guestGone(b, err)
	}
	n.processStarted(b, g, p)
	writeJSON(w, http.StatusCreated, p)
	return nil
}

func (n *Node) postResize(w http.ResponseWriter, r *http.Request) error {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return err
	}
	var req nodeapi.ResizeRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.PID < 1 {
		return invalid("pid: %d is not positive", req.PID)
	}
	if req.Size.Cols == 0 || req.Size.Rows == 0 {
		return invalid("size: %dx%d has no cells", req.Size.Cols, req.Size.Rows)
	}
	if err := g.Resize(r.Context(), req.PID, req.Size); err != nil {
		return guestGone(b, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n *Node) postStdin(w http.ResponseWriter, r *http.Request) error {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return err
	}
	var req guest.StdinRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.PID < 1 {
		return invalid("pid: %d is not positive", req.PID)
	}
	if len(req.Data) > frame.MaxData {
		return invalid("data: %d bytes, at most %d", len(req.Data), frame.MaxData)
	}
	if err := g.Stdin(r.Context(), req); err != nil {
		return guestGone(b, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
