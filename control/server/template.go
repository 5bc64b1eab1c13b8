package server

import (
	"net/http"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

func (s *Server) needTemplates() error {
	if s.cfg.Templates == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service has no templates of its own")
	}
	return nil
}

// templateName returns the name in the path. What a name may be is for package template.
func templateName(r *http.Request) (string, error) {
	name := r.PathValue("name")
	if err := checkText("template name", name, state.MaxTemplateName); err != nil {
		return "", err
	}
	return name, nil
}

// templates is GET /v1/templates.
func (s *Server) templates(w http.ResponseWriter, r *http.Request) error {
	if err := s.needTemplates(); err != nil {
		return err
	}
	ts, err := s.listTemplates(r)
	if err != nil {
		return err
	}
	out := make([]api.Template, 0, len(ts))
	for _, t := range ts {
		out = append(out, templateView(t))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// listTemplates returns the templates that the caller may see.
func (s *Server) listTemplates(r *http.Request) ([]state.Template, error) {
	list, err := s.cfg.Templates.List(r.Context(), tenant(r))
	if err != nil || !requestOf(r).access.decision.Filter {
		return list, err
	}
	return slices.DeleteFunc(slices.Clone(list), func(t state.Template) bool {
		return !s.may(r, rbac.Object{Tenant: t.Tenant, ID: t.Name, Name: t.Name})
	}), nil
}

// template is GET /v1/templates/{name}.
func (s *Server) template(w http.ResponseWriter, r *http.Request) error {
	name, err := templateName(r)
	if err := firstOf(err, s.needTemplates()); err != nil {
		return err
	}
	t, err := s.cfg.Templates.Get(r.Context(), tenant(r), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, templateView(t))
	return nil
}

// importTemplate is PUT /v1/templates/{name}, with a tar stream as its body.
func (s *Server) importTemplate(w http.ResponseWriter, r *http.Request) error {
	name, err := templateName(r)
	if err := firstOf(err, s.needTemplates()); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	source := q.str("source", maxPathBytes)
	if err := firstOf(q.err, checkText("parameter source", source, maxPathBytes)); err != nil {
		return err
	}
	body := s.upload(w, r)
	t, err := s.cfg.Templates.Import(r.Context(), caller(r), name, source, body)
	if err != nil {
		return body.fault(err)
	}
	writeJSON(w, http.StatusCreated, templateView(t))
	return nil
}

// templateNetwork is PUT /v1/templates/{name}/network.
func (s *Server) templateNetwork(w http.ResponseWriter, r *http.Request) error {
	name, err := templateName(r)
	var req api.NetworkPolicy
	if err := firstOf(err, s.needTemplates(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	p, err := layerOf("network", req)
	if err != nil {
		return err
	}
	t, err := s.cfg.Templates.SetNetwork(r.Context(), tenant(r), name, p)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, templateView(t))
	return nil
}

// templatePlacement is PUT /v1/templates/{name}/placement.
func (s *Server) templatePlacement(w http.ResponseWriter, r *http.Request) error {
	name, err := templateName(r)
	var req api.Placement
	if err := firstOf(err, s.needTemplates(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	where, err := placement.ParseRules(&req)
	if err != nil {
		return err
	}
	t, err := s.cfg.Templates.SetPlacement(r.Context(), tenant(r), name, where)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, templateView(t))
	return nil
}

// deleteTemplate is DELETE /v1/templates/{name}.
func (s *Server) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	name, err := templateName(r)
	if err := firstOf(err, s.needTemplates()); err != nil {
		return err
	}
	return noContent(w, s.cfg.Templates.Delete(r.Context(), tenant(r), name))
}

func templateView(t state.Template) api.Template {
	return api.Template{
		Name: t.Name, Digest: t.Digest, Bytes: t.Bytes, Files: t.Files, Source: t.Source, User: t.User, Cwd: t.Cwd, Env: t.Env,
		Network: api.NetworkPolicy(t.Network), Placement: placement.Rules(t.Where).Placement(),
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: utc(t.UpdatedAt),
	}
}
