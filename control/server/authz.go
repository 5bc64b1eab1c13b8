package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// whoami is GET /v1/auth/whoami.
func (s *Server) whoami(w http.ResponseWriter, r *http.Request) error {
	who := caller(r)
	named, all, err := s.cfg.Access.Tenants(requestOf(r).access.who)
	if err != nil {
		return err
	}
	out := api.Whoami{
		Tenant: who.Tenant, Kind: string(who.Kind), Subject: who.Subject, User: who.User(), KeyID: who.KeyID, Name: who.Name,
		Groups: who.Groups, Link: who.Link, Roles: who.Roles, Scope: who.Scope, Tenants: unique(named),
	}
	if all {
		out.Tenants = []string{api.Everywhere}
	}
	if out.Roles == nil {
		out.Roles = []string{}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// explain is POST /v1/auth/explain: what the caller himself may do, and why. About others it says nothing.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) error {
	var req api.ExplainRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	needs := rbac.Permission{Resource: rbac.Resource(req.Resource), Action: rbac.Action(req.Action)}
	if !needs.Resource.Valid() {
		return invalid("resource: %.40q is none of %v", req.Resource, rbac.Resources)
	}
	if !needs.Action.Valid() {
		return invalid("action: %.40q is none of %v", req.Action, rbac.Actions)
	}
	var object func() (rbac.Object, error)
	if req.ID != "" || req.Name != "" || req.Path != "" || len(req.Labels) > 0 {
		o := rbac.Object{Tenant: tenant(r), ID: req.ID, Name: req.Name, Labels: req.Labels}
		if req.Path != "" {
			o.Paths = []string{req.Path}
		}
		if id, err := api.ParseSandboxID(req.ID); err == nil {
			sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
			if err != nil {
				return err
			}
			found := sandboxObject(sb)
			found.Paths, o = o.Paths, found
		}
		object = func() (rbac.Object, error) { return o, nil }
	}
	d, err := s.decide(requestOf(r), needs, object)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Explanation{
		Allowed: d.Allowed, Reason: d.Reason(), Role: d.Role, Rule: d.Rule, By: d.By, Scope: d.Scope, Depends: d.Filter,
	})
	return nil
}

// authLinks is GET /v1/auth/links: what somebody needs who wants to log in. It is for everybody, so it holds nothing else.
func (s *Server) authLinks(w http.ResponseWriter, _ *http.Request) error {
	out := []api.AuthLink{}
	writeJSON(w, http.StatusOK, append(out, s.cfg.Login...))
	return nil
}

// mustEverywhere refuses whoever has a permission in tenants only.
func (s *Server) mustEverywhere(r *http.Request, p rbac.Permission) error {
	req := *requestOf(r)
	req.caller.Tenant = state.Everywhere // which only grants of that scope cover
	d, err := s.decide(&req, p, nil)
	if err != nil {
		return err
	}
	if !d.Allowed || d.Filter {
		return api.Errorf(http.StatusForbidden, api.CodeForbidden, "this needs the permission %s in all tenants, which none of your roles gives", p)
	}
	return nil
}

// scope returns where a role, binding or key is to be: in the tenant, or everywhere, which takes the permission there.
func (s *Server) scope(r *http.Request, everywhere bool) (string, error) {
	if !everywhere {
		return tenant(r), nil
	}
	return state.Everywhere, s.mustEverywhere(r, requestOf(r).access.needs)
}

// mayGive refuses to give a role whose rights the caller does not have himself.
func (s *Server) mayGive(r *http.Request, scope string, roles []string) error {
	for _, name := range roles {
		if err := state.CheckRoleName(name); err != nil {
			return err
		}
		lacks, err := s.cfg.Access.MayGiveRole(requestOf(r).access.who, scope, name)
		if err != nil {
			return err
		}
		if !lacks.IsZero() {
			return cannotGive("role "+name, lacks)
		}
	}
	return nil
}

func cannotGive(what string, p rbac.Permission) error {
	return api.Errorf(http.StatusForbidden, api.CodeForbidden, "%s allows %s, which you are not allowed without conditions: nobody gives what he does not have", what, p)
}

func unique(list []string) []string {
	out := []string{}
	seen := map[string]bool{}
	for _, s := range list {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}
