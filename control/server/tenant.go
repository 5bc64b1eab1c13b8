package server

import (
	"context"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// tenants is GET /v1/tenants: those that the caller has a role in.
func (s *Server) tenants(w http.ResponseWriter, r *http.Request) error {
	list, err := s.ownTenants(r)
	if err != nil {
		return err
	}
	out := make([]api.Tenant, 0, len(list))
	for _, t := range list {
		out = append(out, tenantView(t))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) ownTenants(r *http.Request) ([]state.Tenant, error) {
	if err := s.needPolicy(); err != nil {
		return nil, err
	}
	named, all, err := s.cfg.Access.Tenants(requestOf(r).access.who)
	if err != nil {
		return nil, err
	}
	list, err := s.cfg.Tenants.Tenants()
	if err != nil {
		return nil, err
	}
	if !all {
		list = slices.DeleteFunc(list, func(t state.Tenant) bool { return !slices.Contains(named, t.ID) })
	}
	return list, nil
}

// pathTenant is the tenant that a path names, where the caller has a role in it.
func (s *Server) pathTenant(r *http.Request) (state.Tenant, error) {
	if err := s.needPolicy(); err != nil {
		return state.Tenant{}, err
	}
	return s.cfg.Tenants.Tenant(tenant(r)) // chosen before the decision
}

// tenant is GET /v1/tenants/{tenant}.
func (s *Server) tenant(w http.ResponseWriter, r *http.Request) error {
	t, err := s.pathTenant(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, tenantView(t))
	return nil
}

// createTenant is POST /v1/tenants.
func (s *Server) createTenant(w http.ResponseWriter, r *http.Request) error {
	var req api.NewTenant
	if err := firstOf(s.needPolicy(), s.mustEverywhere(r, requestOf(r).access.needs), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	bound, err := layerOf("network_bound", req.NetworkBound)
	if err != nil {
		return err
	}
	network, err := layerOf("network", req.Network)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	t := state.Tenant{
		NetworkBound: bound, Network: network,
		ID: req.ID, Name: req.Name, Labels: req.Labels, Defaults: defaultsOf(req.Defaults), Maximums: defaultsOf(req.Maximums),
		Isolation: isolationOf(req.Isolation),
		CreatedAt: now, UpdatedAt: now, CreatedBy: caller(r).User(),
	}
	if t.Name == "" {
		t.Name = t.ID
	}
	res, err := s.cfg.Policy.Apply(r.Context(), &state.TenantPut{Tenant: t})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, tenantView(res.Tenant))
	return nil
}

// updateTenant is PATCH /v1/tenants/{tenant}. What limits a tenant is not the tenant's to change.
func (s *Server) updateTenant(w http.ResponseWriter, r *http.Request) error {
	var req api.TenantChange
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	if req.Defaults != nil || req.Maximums != nil || req.Isolation != nil || req.NetworkBound != nil {
		if err := s.mustEverywhere(r, requestOf(r).access.needs); err != nil {
			return err
		}
	}
	var bound state.NetworkPolicy
	if req.NetworkBound != nil {
		var err error
		if bound, err = layerOf("network_bound", *req.NetworkBound); err != nil {
			return err
		}
	}
	return s.changeTenant(w, r, func(t *state.Tenant) {
		if req.NetworkBound != nil {
			t.NetworkBound = bound
		}
		if req.Name != nil {
			t.Name = *req.Name
		}
		if req.Labels != nil {
			t.Labels = *req.Labels
		}
		if req.Defaults != nil {
			t.Defaults = defaultsOf(*req.Defaults)
		}
		if req.Maximums != nil {
			t.Maximums = defaultsOf(*req.Maximums)
		}
		if req.Isolation != nil {
			t.Isolation = isolationOf(*req.Isolation)
		}
	})
}

// suspendTenant is POST /v1/tenants/{tenant}/suspend.
func (s *Server) suspendTenant(w http.ResponseWriter, r *http.Request) error {
	var req api.SuspendRequest
	if err := firstOf(s.mustEverywhere(r, requestOf(r).access.needs), s.decodeBody(w, r, maxJSONBytes, true, &req)); err != nil {
		return err
	}
	return s.changeTenant(w, r, func(t *state.Tenant) {
		if !t.Suspended {
			t.Suspended, t.SuspendedAt = true, time.Now().UTC()
		}
		t.Reason = req.Reason
	})
}

// resumeTenant is POST /v1/tenants/{tenant}/resume.
func (s *Server) resumeTenant(w http.ResponseWriter, r *http.Request) error {
	if err := s.mustEverywhere(r, requestOf(r).access.needs); err != nil {
		return err
	}
	return s.changeTenant(w, r, func(t *state.Tenant) { t.Suspended, t.SuspendedAt, t.Reason = false, time.Time{}, "" })
}

// changeTenant changes a tenant that nobody else changes at the same time: he is told to look again.
func (s *Server) changeTenant(w http.ResponseWriter, r *http.Request, change func(*state.Tenant)) error {
	t, err := s.pathTenant(r)
	if err != nil {
		return err
	}
	index, bound, network := t.ModifyIndex, t.NetworkBound, t.Network
	change(&t)
	t.UpdatedAt = time.Now().UTC()
	res, err := s.cfg.Policy.Apply(r.Context(), &state.TenantPut{Tenant: t, Index: index})
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(bound, t.NetworkBound) || !reflect.DeepEqual(network, t.Network) {
		within, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), tenantNetworkTime)
		defer cancel()
		if err := s.cfg.Lifecycle.TenantNetwork(within, t.ID); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, tenantView(res.Tenant))
	return nil
}

// tenantNetworkTime is how long nodes have to take a tenant's network policy before the change is answered without them.
const tenantNetworkTime = 5 * time.Second

// setTenantNetwork is PUT /v1/tenants/{tenant}/network: the tenant's own policy, which is its administrators' to say.
func (s *Server) setTenantNetwork(w http.ResponseWriter, r *http.Request) error {
	var req api.NetworkPolicy
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	p, err := layerOf("network", req)
	if err != nil {
		return err
	}
	return s.changeTenant(w, r, func(t *state.Tenant) { t.Network = p })
}

// layerOf checks a network policy that is kept for a tenant or a template.
func layerOf(field string, p api.NetworkPolicy) (state.NetworkPolicy, error) {
	if _, err := policy.ParseLayer(field, policy.Spec(p)); err != nil {
		return state.NetworkPolicy{}, invalid("%s.%s", field, err)
	}
	return state.NetworkPolicy(p), nil
}

// deleteTenant is DELETE /v1/tenants/{tenant}.
func (s *Server) deleteTenant(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	cascade := q.boolean("cascade")
	if err := firstOf(q.err, s.needPolicy(), s.mustEverywhere(r, requestOf(r).access.needs)); err != nil {
		return err
	}
	_, err = s.cfg.Policy.Apply(r.Context(), &state.TenantDelete{ID: tenant(r), Cascade: cascade})
	return noContent(w, err)
}

// inPath makes the tenant that a path names the one that the request is about.
func (s *Server) inPath(r *http.Request, req *request, rt *route) error {
	if id := r.PathValue("tenant"); id != "" && (rt.needs.Resource == rbac.Tenant || rt.needs.Resource == rbac.Network) {
		return s.actIn(req, id)
	}
	return nil
}

func tenantView(t state.Tenant) api.Tenant {
	level := func(i state.Isolation) string {
		if i == "" {
			return string(state.Shared)
		}
		return string(i)
	}
	out := api.Tenant{
		ID: t.ID, Name: t.Name, Labels: t.Labels, Suspended: t.Suspended, SuspendedAt: utc(t.SuspendedAt), Reason: t.Reason,
		Defaults: defaultsView(t.Defaults), Maximums: defaultsView(t.Maximums),
		Isolation:    api.TenantIsolation{Network: level(t.Isolation.Network), Storage: level(t.Isolation.Storage), Compute: level(t.Isolation.Compute)},
		NetworkBound: api.NetworkPolicy(t.NetworkBound), Network: api.NetworkPolicy(t.Network),
		CreatedAt: utc(t.CreatedAt), CreatedBy: t.CreatedBy, UpdatedAt: utc(t.UpdatedAt),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

func defaultsView(d state.TenantDefaults) api.TenantDefaults {
	return api.TenantDefaults{
		CPUMillis: d.CPUMillis, MemoryMB: d.MemoryMB, DiskMB: d.DiskMB, TimeoutSeconds: int64(d.Timeout / time.Second),
		BandwidthIn: d.BandwidthIn, BandwidthOut: d.BandwidthOut,
	}
}

func defaultsOf(d api.TenantDefaults) state.TenantDefaults {
	return state.TenantDefaults{
		CPUMillis: d.CPUMillis, MemoryMB: d.MemoryMB, DiskMB: d.DiskMB, Timeout: time.Duration(d.TimeoutSeconds) * time.Second,
		BandwidthIn: d.BandwidthIn, BandwidthOut: d.BandwidthOut,
	}
}

func isolationOf(i api.TenantIsolation) state.TenantIsolation {
	return state.TenantIsolation{Network: state.Isolation(i.Network), Storage: state.Isolation(i.Storage), Compute: state.Isolation(i.Compute)}
}
