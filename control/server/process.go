package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// startProcess is POST /v1/sandboxes/{id}/processes: a process that nobody is attached to.
func (s *Server) startProcess(w http.ResponseWriter, r *http.Request) error {
	var req api.ExecRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	start, err := guestStart(req)
	if err != nil {
		return err
	}
	if start.Attach || start.KillOnDetach {
		return invalid("attach and kill_on_detach go with exec: nobody is attached to this process")
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	p, err := node.Start(r.Context(), id, nodeapi.ExecRequest{Start: start})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, processView(&p))
	return nil
}

// processes is GET /v1/sandboxes/{id}/processes.
func (s *Server) processes(w http.ResponseWriter, r *http.Request) error {
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	ps, err := node.Processes(r.Context(), id)
	if err != nil {
		return err
	}
	out := make([]*api.Process, 0, len(ps))
	for i := range ps {
		out = append(out, processView(&ps[i]))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// signal is POST /v1/sandboxes/{id}/signal.
func (s *Server) signal(w http.ResponseWriter, r *http.Request) error {
	var req api.SignalRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.Signal < 1 || req.Signal > 64 {
		return invalid("signal is %d, 1 to 64 are allowed", req.Signal)
	}
	if req.PID < 0 {
		return invalid("pid is %d, 0 or a process's pid is wanted", req.PID)
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	err = node.Signal(r.Context(), id, nodeapi.SignalRequest{PID: guest.ProcessID(req.PID), Signal: req.Signal, Group: req.Group})
	return noContent(w, err)
}

// stdin is POST /v1/sandboxes/{id}/stdin.
func (s *Server) stdin(w http.ResponseWriter, r *http.Request) error {
	var req api.StdinRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.PID < 1 {
		return invalid("pid is %d, a process's pid is wanted", req.PID)
	}
	if len(req.Data) > frame.MaxData {
		return invalid("data is %d bytes, at most %d are allowed", len(req.Data), frame.MaxData)
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	err = node.Stdin(r.Context(), id, guest.StdinRequest{PID: guest.ProcessID(req.PID), Data: req.Data, Close: req.Close})
	return noContent(w, err)
}

// resize is POST /v1/sandboxes/{id}/resize.
func (s *Server) resize(w http.ResponseWriter, r *http.Request) error {
	var req api.ResizeRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.PID < 1 {
		return invalid("pid is %d, a process's pid is wanted", req.PID)
	}
	if req.Size.Cols == 0 || req.Size.Rows == 0 {
		return invalid("size is %dx%d, both are at least 1", req.Size.Cols, req.Size.Rows)
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	return noContent(w, node.Resize(r.Context(), id, nodeapi.ResizeRequest{PID: guest.ProcessID(req.PID), Size: req.Size}))
}

// noContent answers 204 unless err is set.
func noContent(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func processView(p *guest.ProcessInfo) *api.Process {
	return &api.Process{
		PID: api.ProcessID(p.PID), Argv: p.Argv, Env: p.Env, Cwd: p.Cwd, User: p.User, Tag: p.Tag, TTY: p.TTY,
		StartedAt: p.StartedAt, EndedAt: p.EndedAt, Exit: p.Exit, Stdout: p.Stdout, Stderr: p.Stderr,
	}
}
