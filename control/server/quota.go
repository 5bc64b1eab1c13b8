package server

import (
	"context"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Quotas is what the server needs of the quotas; quota.Service is one. Refusals have an *api.Error in their chain.
type Quotas interface {
	// Call counts an API call against the tenant's rate. It answers from memory.
	Call(tenant string) error
	// Get returns a tenant's own limits, and what counts for it; of state.Everywhere, the default.
	Get(tenant string) (state.Quota, [state.NumLimits]int64, error)
	Set(ctx context.Context, tenant string, limits map[string]int64, by string) error
	Usage(tenant string) (state.Use, error)
}

// quotaTenant returns the tenant in the path, which must be the caller's, unless he may see all.
func (s *Server) quotaTenant(r *http.Request) (string, error) {
	if s.cfg.Quotas == nil {
		return "", api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service has no quotas")
	}
	t := r.PathValue("tenant")
	own, err := s.within(r)
	if err != nil {
		return "", err
	}
	if own != "" && t != own {
		return "", api.Errorf(http.StatusNotFound, api.CodeNotFound, "tenant %.80q does not exist", t)
	}
	if t != state.Everywhere {
		if err := state.CheckTenantID(t); err != nil {
			return "", err
		}
	}
	return t, nil
}

// getQuota is GET /v1/quotas/{tenant}; the tenant "*" is the default.
func (s *Server) getQuota(w http.ResponseWriter, r *http.Request) error {
	t, err := s.quotaTenant(r)
	if err != nil {
		return err
	}
	view, err := s.quotaView(t)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

func (s *Server) quotaView(t string) (api.Quota, error) {
	q, limits, err := s.cfg.Quotas.Get(t)
	if err != nil {
		return api.Quota{}, err
	}
	out := api.Quota{Tenant: t, Limits: q.Limits, Effective: map[string]int64{}, UpdatedAt: utc(q.UpdatedAt), UpdatedBy: q.UpdatedBy}
	if out.Limits == nil {
		out.Limits = map[string]int64{}
	}
	for l := range state.NumLimits {
		out.Effective[l.String()] = limits[l]
	}
	return out, nil
}

// putQuota is PUT /v1/quotas/{tenant}: it replaces the tenant's own limits. One that is not named is the default's from then on.
func (s *Server) putQuota(w http.ResponseWriter, r *http.Request) error {
	t, err := s.quotaTenant(r)
	if err != nil {
		return err
	}
	if own, err := s.within(r); err != nil {
		return err
	} else if own != "" {
		return api.Errorf(http.StatusForbidden, "forbidden", "a tenant may not change its own quota")
	}
	var req api.QuotaRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.Limits == nil {
		return invalid("limits is missing")
	}
	if err := s.cfg.Quotas.Set(r.Context(), t, req.Limits, caller(r).User()); err != nil {
		return err
	}
	view, err := s.quotaView(t)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// quotaUsage is GET /v1/quotas/{tenant}/usage.
func (s *Server) quotaUsage(w http.ResponseWriter, r *http.Request) error {
	t, err := s.quotaTenant(r)
	if err != nil {
		return err
	}
	use, err := s.cfg.Quotas.Usage(t)
	if err != nil {
		return err
	}
	_, limits, err := s.cfg.Quotas.Get(t)
	if err != nil {
		return err
	}
	out := api.QuotaUsage{Tenant: t, Usage: map[string]api.LimitUsage{}}
	for l := range state.NumCounted {
		out.Usage[l.String()] = api.LimitUsage{Used: use[l], Limit: limits[l]}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// countCall counts a call of whoever is known by now.
func (s *Server) countCall(r *http.Request) error {
	if t := tenant(r); s.cfg.Quotas != nil && t != "" {
		return s.cfg.Quotas.Call(t)
	}
	return nil
}
