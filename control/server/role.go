package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Policy is the roles, bindings and tenants as the state keeps them; state.Server is one.
type Policy interface {
	Role(tenant, name string) (state.Role, error)
	Roles(tenant string) ([]state.Role, error)
	Bindings(tenant string) ([]state.Binding, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

func (s *Server) needPolicy() error {
	if s.cfg.Policy == nil || s.cfg.Tenants == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not manage tenants, roles and bindings")
	}
	return nil
}

// roles is GET /v1/roles: those that the tenant's bindings may name.
func (s *Server) roles(w http.ResponseWriter, r *http.Request) error {
	if err := s.needPolicy(); err != nil {
		return err
	}
	list := rbac.Builtin()
	for _, scope := range []string{state.Everywhere, tenant(r)} {
		more, err := s.cfg.Policy.Roles(scope)
		if err != nil {
			return err
		}
		list = append(list, more...)
	}
	out := make([]api.Role, 0, len(list))
	for _, role := range list {
		out = append(out, roleView(role))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// role is GET /v1/roles/{role}: what the name means in the tenant.
func (s *Server) role(w http.ResponseWriter, r *http.Request) error {
	if err := s.needPolicy(); err != nil {
		return err
	}
	name := r.PathValue("role")
	for _, b := range rbac.Builtin() {
		if b.Name == name {
			writeJSON(w, http.StatusOK, roleView(b))
			return nil
		}
	}
	role, err := s.cfg.Policy.Role(tenant(r), name)
	if err != nil {
		role, err = s.cfg.Policy.Role(state.Everywhere, name)
	}
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, roleView(role))
	return nil
}

// putRole is PUT /v1/roles/{role}.
func (s *Server) putRole(w http.ResponseWriter, r *http.Request) error {
	var req api.RolePut
	if err := firstOf(s.needPolicy(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	scope, err := s.scope(r, req.Everywhere)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	role := state.Role{
		Tenant: scope, Name: r.PathValue("role"), Description: req.Description, Parents: req.Parents, CreatedAt: now, UpdatedAt: now,
		CreatedBy: caller(r).User(),
	}
	for i, rule := range req.Rules {
		one, err := ruleOf(rule)
		if err == nil {
			err = rbac.Check(one)
		}
		if err != nil {
			return invalid("rules[%d]: %s", i, err)
		}
		role.Rules = append(role.Rules, one)
	}
	lacks, err := s.cfg.Access.MayGive(requestOf(r).access.who, scope, role.Rules)
	if err != nil {
		return err
	}
	if !lacks.IsZero() {
		return cannotGive("role "+role.Name, lacks)
	}
	if err := s.mayGive(r, scope, req.Parents); err != nil {
		return err
	}
	res, err := s.cfg.Policy.Apply(r.Context(), &state.RolePut{Role: role})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, roleView(res.Role))
	return nil
}

// deleteRole is DELETE /v1/roles/{role}.
func (s *Server) deleteRole(w http.ResponseWriter, r *http.Request) error {
	scope, err := s.scopeAsked(r)
	if err != nil {
		return err
	}
	if state.BuiltinRoles[r.PathValue("role")] {
		return invalid("role %s is built in", r.PathValue("role"))
	}
	_, err = s.cfg.Policy.Apply(r.Context(), &state.RoleDelete{Tenant: scope, Name: r.PathValue("role")})
	return noContent(w, err)
}

// scopeAsked is the scope that a query names.
func (s *Server) scopeAsked(r *http.Request) (string, error) {
	if err := s.needPolicy(); err != nil {
		return "", err
	}
	q, err := parseQuery(r)
	if err != nil {
		return "", err
	}
	all := q.boolean("everywhere")
	if q.err != nil {
		return "", q.err
	}
	return s.scope(r, all)
}

// bindings is GET /v1/bindings.
func (s *Server) bindings(w http.ResponseWriter, r *http.Request) error {
	scope, err := s.scopeAsked(r)
	if err != nil {
		return err
	}
	list, err := s.cfg.Policy.Bindings(scope)
	if err != nil {
		return err
	}
	out := make([]api.Binding, 0, len(list))
	for _, b := range list {
		out = append(out, bindingView(b))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// createBinding is POST /v1/bindings.
func (s *Server) createBinding(w http.ResponseWriter, r *http.Request) error {
	var req api.NewBinding
	if err := firstOf(s.needPolicy(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	scope, err := s.scope(r, req.Everywhere)
	if err != nil {
		return err
	}
	if err := s.mayGive(r, scope, []string{req.Role}); err != nil {
		return err
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails on Linux
	b := state.Binding{
		ID: "b" + hex.EncodeToString(id[:]), Tenant: scope, Role: req.Role, CreatedAt: time.Now().UTC(), CreatedBy: caller(r).User(),
	}
	for _, sub := range req.Subjects {
		b.Subjects = append(b.Subjects, state.Subject{Kind: state.SubjectKind(sub.Kind), ID: sub.ID})
	}
	res, err := s.cfg.Policy.Apply(r.Context(), &state.BindingPut{Binding: b})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, bindingView(res.Binding))
	return nil
}

// deleteBinding is DELETE /v1/bindings/{binding}.
func (s *Server) deleteBinding(w http.ResponseWriter, r *http.Request) error {
	scope, err := s.scopeAsked(r)
	if err != nil {
		return err
	}
	_, err = s.cfg.Policy.Apply(r.Context(), &state.BindingDelete{Tenant: scope, ID: r.PathValue("binding")})
	return noContent(w, err)
}

func roleView(r state.Role) api.Role {
	out := api.Role{
		Name: r.Name, Scope: r.Tenant, BuiltIn: state.BuiltinRoles[r.Name], Description: r.Description, Parents: r.Parents,
		CreatedAt: utc(r.CreatedAt), CreatedBy: r.CreatedBy, UpdatedAt: utc(r.UpdatedAt), Rules: make([]api.Rule, 0, len(r.Rules)),
	}
	if out.Parents == nil {
		out.Parents = []string{}
	}
	for _, rule := range r.Rules {
		effect := "allow"
		if rule.Deny {
			effect = "deny"
		}
		out.Rules = append(out.Rules, api.Rule{
			Effect: effect, Resources: rule.Resources, Actions: rule.Actions, IDs: rule.IDs, Names: rule.Names, Labels: rule.Labels,
			Paths: rule.Paths, NotBefore: utc(rule.NotBefore), NotAfter: utc(rule.NotAfter), Hours: rule.Hours, Days: rule.Days,
			Sources: rule.Sources, Owner: rule.Owner,
		})
	}
	return out
}

func ruleOf(r api.Rule) (state.Rule, error) {
	out := state.Rule{
		Resources: r.Resources, Actions: r.Actions, IDs: r.IDs, Names: r.Names, Labels: r.Labels, Paths: r.Paths,
		NotBefore: r.NotBefore, NotAfter: r.NotAfter, Hours: r.Hours, Days: r.Days, Sources: r.Sources, Owner: r.Owner,
	}
	switch r.Effect {
	case "", "allow":
	case "deny":
		out.Deny = true
	default:
		return out, fmt.Errorf("effect: %.20q is neither allow nor deny", r.Effect)
	}
	return out, nil
}

func bindingView(b state.Binding) api.Binding {
	out := api.Binding{ID: b.ID, Scope: b.Tenant, Role: b.Role, CreatedAt: utc(b.CreatedAt), CreatedBy: b.CreatedBy, Subjects: []api.Subject{}}
	for _, s := range b.Subjects {
		out.Subjects = append(out.Subjects, api.Subject{Kind: string(s.Kind), ID: s.ID})
	}
	return out
}
