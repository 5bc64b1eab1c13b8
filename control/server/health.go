package server

import (
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
)

// health is GET /v1/health.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) error {
	h := api.ServiceHealth{
		Status: api.HealthOK, UptimeSeconds: int64(time.Since(s.started) / time.Second), Version: version.Version,
	}
	if err := s.cfg.Ready(); err != nil {
		e, _ := mapError(notReady(err))
		h.Status, h.Reason = api.HealthUnhealthy, e.Message
		writeJSON(w, e.Code, struct {
			*api.Error
			api.ServiceHealth
		}{e, h})
		return nil
	}
	writeJSON(w, http.StatusOK, h)
	return nil
}

func notReady(err error) error {
	return api.Errorf(http.StatusServiceUnavailable, codeNotReady, "the service is not ready: %s", err)
}

// version is GET /v1/version.
func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, api.VersionInfo{
		Version: version.Version, Commit: version.Commit(), APIVersion: version.API, MinAPIVersion: version.MinAPI, MinClient: version.MinClient,
	})
	return nil
}

// sandboxHealth is GET /v1/sandboxes/{id}/health: 503 where the sandbox is not healthy, 404 where there is none.
func (s *Server) sandboxHealth(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	known, err := s.cfg.Lifecycle.Health(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	h := api.SandboxHealth{
		Status: api.HealthOK, SandboxID: id, UptimeSeconds: int64(known.Uptime / time.Second),
		Version: known.Version, State: string(known.State), Node: known.Node,
	}
	if h.Version == "" {
		h.Version = version.Version
	}
	if known.OK() {
		writeJSON(w, http.StatusOK, h)
		return nil
	}
	h.Status, h.Reason = api.HealthUnhealthy, clip(redact(known.Reason))
	e := api.Errorf(http.StatusServiceUnavailable, codeUnhealthy, "sandbox %s is not healthy: %s", id, h.Reason)
	recorderOf(w).note(e)
	writeJSON(w, e.Code, struct {
		*api.Error
		api.SandboxHealth
	}{e, h})
	return nil
}
