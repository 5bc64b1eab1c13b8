package server

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/secret"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Secrets is what the server needs of the keeper of secrets; secret.Service is one. ref is an id or a name.
type Secrets interface {
	Create(ctx context.Context, tenant, by, name, value string, metadata map[string]string) (state.Secret, error)
	Update(ctx context.Context, tenant, by, ref, value string, metadata map[string]string) (state.Secret, error)
	Get(tenant, ref string) (state.Secret, error)
	List(tenant string) ([]state.Secret, error)
	Delete(ctx context.Context, tenant, ref string) (state.Secret, error)
}

func (s *Server) needSecrets() error {
	if s.cfg.Secrets == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service keeps no secrets")
	}
	return nil
}

func secretObject(sec state.Secret) rbac.Object {
	return rbac.Object{Tenant: sec.Tenant, ID: sec.ID, Name: sec.Name, Labels: sec.Metadata, Owner: sec.CreatedBy}
}

// e2bSecrets is GET /secrets: a page, the newest first.
func (s *Server) e2bSecrets(w http.ResponseWriter, r *http.Request) error {
	if err := s.needSecrets(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	limit, after := int(q.integer("limit", maxE2BLimit, 1, maxE2BLimit)), q.str("nextToken", maxTokenBytes)
	if q.err != nil {
		return q.err
	}
	all, err := s.cfg.Secrets.List(tenant(r))
	if err != nil {
		return err
	}
	out := []api.Secret{}
	found := after == ""
	for _, sec := range all {
		if !found { // the token is the last secret of the page before; one that was deleted meanwhile ends the list
			found = sec.ID == after
			continue
		}
		if !s.may(r, secretObject(sec)) {
			continue
		}
		if len(out) == limit {
			w.Header().Set("X-Next-Token", out[limit-1].SecretID)
			break
		}
		out = append(out, e2bSecretView(sec))
	}
	if !found {
		return invalid("nextToken is not one that this list gave, or its secret is gone")
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bCreateSecret is POST /secrets.
func (s *Server) e2bCreateSecret(w http.ResponseWriter, r *http.Request) error {
	var req api.NewSecret
	if err := firstOf(s.needSecrets(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if req.Name == "" {
		return invalid("name is missing")
	}
	by := caller(r).User()
	if err := s.mustMay(r, rbac.Object{Tenant: tenant(r), Name: req.Name, Labels: req.Metadata, Owner: by}); err != nil {
		return err
	}
	sec, err := s.cfg.Secrets.Create(r.Context(), tenant(r), by, req.Name, req.Value, req.Metadata)
	if err != nil {
		return err
	}
	return s.secretChanged(w, r, http.StatusCreated, sec)
}

// e2bSecret is GET /secrets/{secret}, by id or name.
func (s *Server) e2bSecret(w http.ResponseWriter, r *http.Request) error {
	sec, err := s.secretInPath(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, e2bSecretView(sec))
	return nil
}

// e2bUpdateSecret is POST /secrets/{secret}.
func (s *Server) e2bUpdateSecret(w http.ResponseWriter, r *http.Request) error {
	var req api.SecretValue
	sec, err := s.secretInPath(r)
	if err := firstOf(err, s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	if sec, err = s.cfg.Secrets.Update(r.Context(), tenant(r), caller(r).User(), sec.ID, req.Value, req.Metadata); err != nil {
		return err
	}
	return s.secretChanged(w, r, http.StatusOK, sec)
}

// e2bDeleteSecret is DELETE /secrets/{secret}.
func (s *Server) e2bDeleteSecret(w http.ResponseWriter, r *http.Request) error {
	sec, err := s.secretInPath(r)
	if err != nil {
		return err
	}
	if sec, err = s.cfg.Secrets.Delete(r.Context(), tenant(r), sec.ID); err != nil {
		return err
	}
	return s.secretChanged(w, r, http.StatusNoContent, sec)
}

// secretInPath is the secret that a path names, where the caller may do to it what the route does.
func (s *Server) secretInPath(r *http.Request) (state.Secret, error) {
	if err := s.needSecrets(); err != nil {
		return state.Secret{}, err
	}
	sec, err := s.cfg.Secrets.Get(tenant(r), r.PathValue("secret"))
	if err != nil {
		return state.Secret{}, err
	}
	return sec, s.mustMay(r, secretObject(sec))
}

// secretChanged tells the sandboxes whose rules name a secret before the answer: who has it may rely on the new value.
func (s *Server) secretChanged(w http.ResponseWriter, r *http.Request, status int, sec state.Secret) error {
	req := requestOf(r)
	req.object = sec.ID
	req.detail("name", sec.Name)
	within, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), tenantNetworkTime)
	defer cancel()
	if err := s.cfg.Lifecycle.SecretChanged(within, sec.Tenant, sec.Name); err != nil {
		s.log.Warn("a secret has not reached all sandboxes yet", "secret", sec.ID, "error", err)
	}
	if status == http.StatusNoContent {
		return noContent(w, nil)
	}
	writeJSON(w, status, e2bSecretView(sec))
	return nil
}

// mayUseSecrets decides on the secrets that header rules name. Whether they exist is told when they are used.
func (s *Server) mayUseSecrets(r *http.Request, rules json.RawMessage) error {
	if s.cfg.Secrets == nil || !given(rules) {
		return nil
	}
	use := can(rbac.Secret, rbac.Execute)
	var domains map[string][]struct {
		Transform struct {
			Headers map[string]string `json:"headers"`
		} `json:"transform"`
	}
	if err := json.Unmarshal(rules, &domains); err != nil {
		return invalid("network.rules: %s", err)
	}
	var texts []string // decoded: a placeholder may be written with escapes
	for _, list := range domains {
		for _, rule := range list {
			texts = slices.AppendSeq(texts, maps.Values(rule.Transform.Headers))
		}
	}
	for _, name := range secret.Names(strings.Join(texts, "\n")) {
		o := rbac.Object{Tenant: tenant(r), Name: name}
		if sec, err := s.cfg.Secrets.Get(tenant(r), name); err == nil {
			o = secretObject(sec)
		}
		if !s.mayDo(r, use, o) {
			return forbidden(use)
		}
	}
	return nil
}

func e2bSecretView(sec state.Secret) api.Secret {
	v := api.Secret{
		SecretID: sec.ID, Name: sec.Name, CurrentVersion: int64(sec.Version), Metadata: sec.Metadata, CreatedAt: sec.CreatedAt.UTC(), UpdatedAt: sec.UpdatedAt.UTC(),
	}
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	return v
}
