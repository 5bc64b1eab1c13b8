package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

const maxTagsAtOnce = 100

// e2bTag is POST /templates/tags: the content of a name, with a tag or without, gets more tags.
func (s *Server) e2bTag(w http.ResponseWriter, r *http.Request) error {
	var req api.AssignTags
	if err := firstOf(s.needTemplates(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if err := firstOf(checkName("target", req.Target), checkTags(req.Tags)); err != nil {
		return err
	}
	t, err := s.cfg.Templates.Tag(r.Context(), tenant(r), req.Target, req.Tags)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, api.AssignedTags{Tags: req.Tags, BuildID: template.BuildID(t)})
	return nil
}

// e2bUntag is DELETE /templates/tags.
func (s *Server) e2bUntag(w http.ResponseWriter, r *http.Request) error {
	var req api.RemoveTags
	if err := firstOf(s.needTemplates(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if err := firstOf(checkName("name", req.Name), checkTags(req.Tags)); err != nil {
		return err
	}
	return noContent(w, s.cfg.Templates.Untag(r.Context(), tenant(r), req.Name, req.Tags))
}

func checkName(field, name string) error {
	if name == "" {
		return invalid("%s is missing", field)
	}
	return checkText(field, name, state.MaxTemplateName)
}

func checkTags(tags []string) error {
	if len(tags) == 0 || len(tags) > maxTagsAtOnce {
		return invalid("tags has %d elements, 1 to %d are allowed", len(tags), maxTagsAtOnce)
	}
	for _, tag := range tags {
		if err := template.CheckTag(tag); err != nil {
			return err
		}
	}
	return nil
}

// publish is what the two versions of PATCH /templates/{tid} do.
func (s *Server) publish(w http.ResponseWriter, r *http.Request) (state.Template, error) {
	var req api.TemplateUpdate
	if err := firstOf(s.needTemplates(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return state.Template{}, err
	}
	t, err := s.e2bTemplateOf(r.Context(), tenant(r), r.PathValue("tid"))
	if err != nil {
		return state.Template{}, err
	}
	if req.Public == nil {
		return t, nil // nothing else can be changed
	}
	return s.cfg.Templates.Publish(r.Context(), tenant(r), t.Name, *req.Public)
}

// e2bPublish is PATCH /templates/{tid}.
func (s *Server) e2bPublish(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.publish(w, r); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct{}{})
	return nil
}

// e2bPublishV2 is PATCH /v2/templates/{tid}.
func (s *Server) e2bPublishV2(w http.ResponseWriter, r *http.Request) error {
	t, err := s.publish(w, r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.TemplateNames{Names: []string{t.Tenant + "/" + t.Name}})
	return nil
}
