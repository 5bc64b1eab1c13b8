package server

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Access decides who may do what; rbac.Evaluator is one. It is asked for every request and answers from memory.
type Access interface {
	Decide(q rbac.Request) (rbac.Decision, error)
	In(w rbac.Who, tenant string) (bool, error)
	Tenants(w rbac.Who) (named []string, all bool, err error)
	MayGive(w rbac.Who, scope string, rules []state.Rule) (rbac.Permission, error)
	MayGiveRole(w rbac.Who, scope, role string) (rbac.Permission, error)
}

// access is what is known of a request's rights.
type access struct {
	who      rbac.Who
	source   netip.Addr
	needs    rbac.Permission
	decision rbac.Decision
}

// authenticate finds out who asks, and which tenant he acts in.
func (s *Server) authenticate(r *http.Request, req *request) error {
	shown, err := credentials(r)
	if err != nil {
		return err
	}
	who, err := s.cfg.Auth.Authenticate(r.Context(), shown)
	if err != nil {
		return err
	}
	req.is(who, shown.Source)
	return s.chooseTenant(r, req)
}

// is notes whose request it is.
func (req *request) is(who auth.Identity, source netip.Addr) {
	req.caller = who
	req.access.who = rbac.Who{ID: who.Version, Subjects: who.Subjects, Roles: who.Roles, Scope: who.Scope, Owner: who.User()}
	req.access.source = source
}

// chooseTenant lets somebody act in another tenant than his credential's, where he has a role. Where he has none, the tenant
// is not there for him.
func (s *Server) chooseTenant(r *http.Request, req *request) error {
	vs := append(r.Header.Values(api.TenantHeader), r.Header.Values("X-Team-ID")...)
	if len(vs) > 1 {
		return invalid("the header %s comes more than once", api.TenantHeader)
	}
	if len(vs) == 1 {
		return s.actIn(req, vs[0])
	}
	return nil
}

// actIn makes tenant the one that a request is about.
func (s *Server) actIn(req *request, tenant string) error {
	if tenant == req.caller.Tenant {
		return nil
	}
	if err := state.CheckTenantID(tenant); err != nil {
		return err
	}
	in, err := s.cfg.Access.In(req.access.who, tenant)
	if err != nil {
		return err
	}
	if in && s.cfg.Tenants != nil {
		if _, err := s.cfg.Tenants.Tenant(tenant); errors.Is(err, state.ErrNotFound) {
			in = false
		} else if err != nil {
			return err
		}
	}
	if !in {
		return noTenant(tenant)
	}
	req.caller.Tenant = tenant
	return nil
}

func noTenant(id string) error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "tenant %.80q does not exist", id)
}

// authorize decides whether the route may be used. A permission that depends on the object is decided with it, where the path
// names it; a route that says each asks again for the objects that it finds itself.
func (s *Server) authorize(r *http.Request, req *request, rt *route) error {
	if rt.anyone {
		return nil
	}
	req.access.needs = rt.needs
	if err := s.inPath(r, req, rt); err != nil {
		return err
	}
	if err := s.checkSuspended(req, rt); err != nil {
		return err
	}
	d, err := s.decide(req, rt.needs, s.named(r, rt))
	if err == nil && d.Allowed && d.Filter && !rt.each {
		d.Allowed = false // it could not be told whether this one is meant
	}
	req.access.decision = d
	if s.cfg.Decided != nil {
		s.cfg.Decided(r, req.caller, rt.needs, d, err)
	}
	if err != nil {
		return err
	}
	if !d.Allowed {
		return forbidden(rt.needs)
	}
	return nil
}

// decide asks for a permission. object may be nil: any of the tenant's.
func (s *Server) decide(req *request, needs rbac.Permission, object func() (rbac.Object, error)) (rbac.Decision, error) {
	return s.cfg.Access.Decide(rbac.Request{
		Who: req.access.who, Permission: needs, Tenant: scopeOf(needs, req.caller.Tenant), Object: object,
		Source: req.access.source, Now: time.Now(),
	})
}

// scopeOf returns the tenant that a permission's objects are of; none for what is the system's.
func scopeOf(p rbac.Permission, tenant string) string {
	switch p.Resource {
	case rbac.Node, rbac.Pool, rbac.System:
		return ""
	}
	return tenant
}

func forbidden(p rbac.Permission) error {
	return api.Errorf(http.StatusForbidden, api.CodeForbidden, "this needs the permission %s here, which none of your roles gives; "+
		"\"soulbox auth can-i\" tells which rule decides", p)
}

// checkSuspended lets a suspended tenant look and clean up, and no more.
func (s *Server) checkSuspended(req *request, rt *route) error {
	if s.cfg.Tenants == nil || rt.needs.Resource == rbac.Tenant || scopeOf(rt.needs, "t") == "" {
		return nil
	}
	t, err := s.cfg.Tenants.Tenant(req.caller.Tenant)
	if errors.Is(err, state.ErrNotFound) {
		return noTenant(req.caller.Tenant)
	}
	if err != nil || !t.Suspended {
		return err
	}
	if rt.needs.Action == rbac.Read || rt.needs.Action == rbac.Delete {
		return nil
	}
	return suspended(t)
}

func suspended(t state.Tenant) error {
	why := ""
	if t.Reason != "" {
		why = ": " + t.Reason
	}
	return api.Errorf(http.StatusForbidden, api.CodeSuspended, "tenant %s is suspended%s", t.ID, why)
}

// may tells whether the caller has the route's permission for one object. Handlers of routes that say each ask it.
func (s *Server) may(r *http.Request, o rbac.Object) bool {
	return s.mayDo(r, requestOf(r).access.needs, o)
}

func (s *Server) mayDo(r *http.Request, p rbac.Permission, o rbac.Object) bool {
	d, err := s.decide(requestOf(r), p, func() (rbac.Object, error) { return o, nil })
	return err == nil && d.Allowed
}

// mustMay is may as an error.
func (s *Server) mustMay(r *http.Request, o rbac.Object) error {
	if !s.may(r, o) {
		return forbidden(requestOf(r).access.needs)
	}
	return nil
}

// mustMaySandbox is mustMay for a sandbox by its id. It is not looked up where no rule looks at it.
func (s *Server) mustMaySandbox(r *http.Request, id api.SandboxID) error {
	if !requestOf(r).access.decision.Filter {
		return nil
	}
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	return s.mustMay(r, sandboxObject(sb))
}

// mayCreate decides on a sandbox that does not exist yet.
func (s *Server) mayCreate(r *http.Request, p lifecycle.CreateParams) error {
	if !requestOf(r).access.decision.Filter {
		return nil
	}
	return s.mustMay(r, rbac.Object{
		Tenant: tenant(r), ID: string(p.ID), Name: p.Template, Labels: p.Metadata, Owner: caller(r).User(),
	})
}

// visible returns which sandboxes of a list the caller may see; nil: all.
func (s *Server) visible(r *http.Request) func(state.Sandbox) bool {
	if !requestOf(r).access.decision.Filter {
		return nil
	}
	return func(sb state.Sandbox) bool { return s.may(r, sandboxObject(sb)) }
}

// seen keeps of a page what the caller may see. The numbers beside it count that alone.
func (s *Server) seen(r *http.Request, l state.List) state.List {
	visible := s.visible(r)
	if visible == nil {
		return l
	}
	kept := make([]state.Sandbox, 0, len(l.Sandboxes))
	l.TotalRunning = 0
	for _, sb := range l.Sandboxes {
		if visible(sb) {
			kept = append(kept, sb)
			if sb.State == state.Running {
				l.TotalRunning++
			}
		}
	}
	l.Sandboxes = kept
	return l
}

// sandboxObject is a sandbox as rules see it.
func sandboxObject(sb state.Sandbox) rbac.Object {
	owner := sb.Owner
	if owner == "" && sb.KeyID != "" {
		owner = string(auth.KindKey) + ":" + sb.KeyID
	}
	return rbac.Object{Tenant: sb.Tenant, ID: string(sb.ID), Name: sb.Template, Labels: sb.Metadata, Owner: owner}
}

// named returns how to find the object that a route's path names, or nil where it names none.
func (s *Server) named(r *http.Request, rt *route) func() (rbac.Object, error) {
	if rt.each {
		return nil
	}
	_, path, _ := strings.Cut(rt.pattern, " ")
	if rest, ok := strings.CutPrefix(path, "/v1/"); ok {
		path = "/" + rest
	} else if rest, ok := strings.CutPrefix(path, "/v2/"); ok {
		path = "/" + rest
	}
	switch {
	case strings.HasPrefix(path, "/sandboxes/{id}"):
		return func() (rbac.Object, error) {
			id, err := sandboxID(r)
			if err != nil {
				return rbac.Object{}, err
			}
			return s.sandboxNamed(r, rt, id)
		}
	case strings.HasPrefix(path, "/terminals/{id}"):
		return func() (rbac.Object, error) {
			_, id, _, err := parseTerminalID(r.PathValue("id"))
			if err != nil {
				return rbac.Object{}, err
			}
			return s.sandboxNamed(r, rt, id)
		}
	case strings.HasPrefix(path, "/templates/{tid}") && s.cfg.Templates != nil:
		return func() (rbac.Object, error) {
			name := r.PathValue("tid")
			if name == "aliases" && r.PathValue("what") != "" {
				name = r.PathValue("what")
			}
			t, err := s.e2bTemplateOf(r.Context(), tenant(r), name)
			return rbac.Object{Tenant: tenant(r), ID: t.Name, Name: t.Name}, err
		}
	case strings.HasPrefix(path, "/templates/{name}") && s.cfg.Templates != nil:
		return func() (rbac.Object, error) {
			name := r.PathValue("name")
			if t, err := s.cfg.Templates.Get(r.Context(), tenant(r), name); err == nil {
				name = t.Name
			}
			return rbac.Object{Tenant: tenant(r), ID: name, Name: name}, nil
		}
	}
	open, end := strings.Index(path, "{"), strings.Index(path, "}")
	if open < 0 {
		return nil
	}
	value := r.PathValue(path[open+1 : end])
	return func() (rbac.Object, error) { return rbac.Object{Tenant: tenant(r), ID: value, Name: value}, nil }
}

// sandboxNamed is the sandbox of a path, with the paths inside it that the request is about.
func (s *Server) sandboxNamed(r *http.Request, rt *route, id api.SandboxID) (rbac.Object, error) {
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return rbac.Object{}, err
	}
	o := sandboxObject(sb)
	if rt.needs.Resource == rbac.File {
		q, err := parseQuery(r)
		if err != nil {
			return rbac.Object{}, err
		}
		if o.Paths, err = absolute(q.values["path"]); err != nil {
			return rbac.Object{}, err
		}
		o.Below = strings.HasSuffix(rt.pattern, "/archive") // it is of all that lies below
	}
	return o, nil
}
