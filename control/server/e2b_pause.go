package server

import (
	"math"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
)

// Defaults of the contract, in seconds.
const (
	defaultResumeSeconds = 15
	defaultForkSeconds   = 15
	maxForks             = 100
)

// e2bPause is POST /sandboxes/{id}/pause.
func (s *Server) e2bPause(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.PauseRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	if _, err := s.cfg.Lifecycle.Pause(r.Context(), tenant(r), id, kept(req.Memory)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// e2bResume is POST /sandboxes/{id}/resume.
func (s *Server) e2bResume(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.ResumeRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	d, err := e2bSeconds("timeout", req.Timeout, defaultResumeSeconds, 0, math.MaxInt32)
	if err != nil {
		return err
	}
	sb, err := s.cfg.Lifecycle.Resume(r.Context(), tenant(r), id, d, kept(req.Memory))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, e2bAccess(sb))
	return nil
}

// kept is what the contract's member memory asks for: everything where it is missing.
func kept(memory *bool) lifecycle.Keep {
	if memory != nil && !*memory {
		return lifecycle.KeepFiles
	}
	return lifecycle.KeepMemory
}

// e2bFork is POST /sandboxes/{id}/fork. Each copy is a sandbox or an error of its own.
func (s *Server) e2bFork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.ForkRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	d, err := e2bSeconds("timeout", req.Timeout, defaultForkSeconds, 1, math.MaxInt32)
	if err != nil {
		return err
	}
	count := int64(1)
	if req.Count != nil {
		count = *req.Count
	}
	if count < 1 || count > maxForks {
		return invalid("count is %d, 1 to %d are allowed", count, maxForks)
	}
	forks, err := s.cfg.Lifecycle.Fork(r.Context(), caller(r), id, int(count), d)
	if err != nil {
		return err
	}
	out := make([]api.ForkResult, len(forks))
	for i, f := range forks {
		if f.Err != nil {
			out[i].Error, _ = mapError(f.Err)
			continue
		}
		access := e2bAccess(f.Sandbox)
		out[i].Sandbox = &access
	}
	writeJSON(w, http.StatusCreated, out)
	return nil
}
