package server

import (
	"math"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
)

// e2bHealth is GET /health: 204 where the service serves.
func (s *Server) e2bHealth(w http.ResponseWriter, _ *http.Request) error {
	if err := s.cfg.Ready(); err != nil {
		return notReady(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// e2bGet is GET /sandboxes/{id}. Beyond the contract, soulbox=true shows an ended one too, and all that is told of it.
func (s *Server) e2bGet(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	more := q.boolean("soulbox")
	if q.err != nil {
		return q.err
	}
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	if !e2bVisible(sb.State) && !more {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s is %s", id, sb.State)
	}
	out := e2bDetail(sb)
	if more {
		view := sandboxView(sb)
		out.SoulBox = &view
	}
	if !s.mayDo(r, can(rbac.Sandbox, rbac.Connect), sandboxObject(sb)) {
		out.EnvdAccessToken = "" // who may look may not reach in
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bDelete is DELETE /sandboxes/{id}.
func (s *Server) e2bDelete(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	if err := s.cfg.Lifecycle.Delete(r.Context(), tenant(r), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// e2bTimeout is POST /sandboxes/{id}/timeout. It may shorten; 0 ends the sandbox now.
func (s *Server) e2bTimeout(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.TimeoutRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.Timeout == nil {
		return invalid("timeout is missing")
	}
	d, err := e2bSeconds("timeout", req.Timeout, 0, 0, math.MaxInt32)
	if err != nil {
		return err
	}
	if _, err := s.cfg.Lifecycle.SetTimeout(r.Context(), tenant(r), id, d); err != nil {
		return onlyRunning(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// e2bRefresh is POST /sandboxes/{id}/refreshes.
func (s *Server) e2bRefresh(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.RefreshRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	d, err := e2bSeconds("duration", req.Duration, api.DefaultRefreshSeconds, 0, api.MaxRefreshSeconds)
	if err != nil {
		return err
	}
	if _, err := s.cfg.Lifecycle.Refresh(r.Context(), tenant(r), id, d); err != nil {
		return onlyRunning(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// onlyRunning answers for a sandbox that does not run what the contract has for its timeouts: it is not there.
func onlyRunning(err error) error {
	if api.CodeOf(err) != api.CodeNotRunning {
		return err
	}
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "%s", err)
}

// e2bConnectV1 is POST /sandboxes/{id}/connect, where timeout is required.
func (s *Server) e2bConnectV1(w http.ResponseWriter, r *http.Request) error {
	var req api.ConnectRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.Timeout == nil {
		return invalid("timeout is missing")
	}
	return s.e2bConnect(w, r, req)
}

// e2bConnectV2 is POST /v2/sandboxes/{id}/connect, where the body may be missing.
func (s *Server) e2bConnectV2(w http.ResponseWriter, r *http.Request) error {
	var req api.ConnectRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	return s.e2bConnect(w, r, req)
}

// e2bConnect answers 200 for a sandbox that runs, and 201 for one that was paused and is resumed.
func (s *Server) e2bConnect(w http.ResponseWriter, r *http.Request, req api.ConnectRequest) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	d, err := e2bSeconds("timeout", req.Timeout, api.DefaultTimeoutSeconds, 0, math.MaxInt32)
	if err != nil {
		return err
	}
	sb, resumed, err := s.cfg.Lifecycle.Connect(r.Context(), tenant(r), id, d, kept(req.Memory))
	if err != nil {
		return err
	}
	status := http.StatusOK
	if resumed {
		status = http.StatusCreated
	}
	writeJSON(w, status, e2bAccess(sb))
	return nil
}
