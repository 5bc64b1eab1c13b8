package node

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
)

func (n *Node) getTemplates(w http.ResponseWriter, _ *http.Request) error {
	list := n.templates.List()
	if list == nil {
		list = []nodeapi.Template{}
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (n *Node) getTemplate(w http.ResponseWriter, r *http.Request) error {
	t, err := n.templates.Lookup(r.PathValue("name"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, t)
	return nil
}

// putTemplate imports the body. The query may override what the image says of its processes: user, cwd, env (repeated). With a digest
// in the query there is no body: the template that is there gets one more name.
func (n *Node) putTemplate(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if d := q.Get("digest"); d != "" {
		t, err := n.templates.Name(r.PathValue("name"), d)
		if err != nil {
			return err
		}
		n.hub.publish(nodeapi.EventTemplate, "", nil)
		writeJSON(w, http.StatusOK, t)
		return nil
	}
	o := store.ImportOptions{User: q.Get("user"), Cwd: q.Get("cwd"), Ref: q.Get("ref"), Env: q["env"]}
	body := idleReader{r: r.Body, rc: http.NewResponseController(w)}
	t, err := n.templates.Import(r.Context(), r.PathValue("name"), body, o)
	if err != nil {
		return badArchive(err)
	}
	n.log.Info("template imported", "name", t.Name, "digest", t.Digest, "bytes", t.Bytes, "files", t.Files)
	n.hub.publish(nodeapi.EventTemplate, "", nil)
	writeJSON(w, http.StatusOK, t)
	return nil
}

func (n *Node) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	if err := n.templates.Remove(r.Context(), r.PathValue("name")); err != nil {
		return err
	}
	n.hub.publish(nodeapi.EventTemplate, "", nil)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n *Node) deleteOwnTemplate(w http.ResponseWriter, r *http.Request) error {
	if err := n.templates.RemoveOwn(r.Context(), nodeapi.OwnTemplate{Tenant: r.PathValue("tenant"), Digest: r.PathValue("name")}); err != nil {
		return err
	}
	n.hub.publish(nodeapi.EventTemplate, "", nil)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// ownTemplate sees to it that a tenant has its own copy of the template that a request asks for.
func (n *Node) ownTemplate(ctx context.Context, req nodeapi.CreateRequest) error {
	if req.TemplateOf == "" {
		return nil
	}
	if err := n.admits(); err != nil {
		return err
	}
	made, err := n.templates.MakeOwn(ctx, req.TemplateOf, req.Template)
	if err != nil {
		return err
	}
	if made {
		n.log.Info("tenant has its own copy of a template", "tenant", req.TemplateOf, "template", req.Template)
		n.hub.publish(nodeapi.EventTemplate, "", nil)
	}
	return nil
}

// acquire takes a lease on the lower layer of a sandbox.
func (n *Node) acquire(tenant, template string) (*lease, error) {
	if tenant != "" {
		return n.templates.AcquireOwn(tenant, template)
	}
	return n.templates.Acquire(template)
}

// exportTemplate sends a template as tar; see getArchive for errors in the middle.
func (n *Node) exportTemplate(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	t, err := n.templates.Lookup(name)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("SoulBox-Digest", strings.TrimSpace(t.Digest))
	w.Header().Set("Trailer", nodeapi.ErrorTrailer)
	w.WriteHeader(http.StatusOK)
	out := idleWriter{w: w, rc: http.NewResponseController(w)}
	// By digest: the name may move meanwhile.
	if err := n.templates.Export(r.Context(), t.Digest, out); err != nil && r.Context().Err() == nil {
		b, _ := json.Marshal(apiError(err))
		w.Header().Set(nodeapi.ErrorTrailer, string(b))
	}
	return nil
}
