package fleettest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// PutTemplate stores a template; its digest is that of the bytes.
func (n *Node) PutTemplate(name string, archive []byte) nodeapi.Template {
	n.mu.Lock()
	defer n.mu.Unlock()
	sum := sha256.Sum256(archive)
	t := nodeapi.Template{
		Name: name, Digest: "sha256:" + hex.EncodeToString(sum[:]), Bytes: int64(len(archive)), Files: 1, CreatedAt: time.Now(),
	}
	n.templates[name] = t
	n.archives[t.Digest] = archive
	n.emit(nodeapi.Event{Type: nodeapi.EventTemplate})
	return t
}

// HasTemplate reports whether the node has a template of that name or digest.
func (n *Node) HasTemplate(nameOrDigest string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.template(nameOrDigest)
	return ok
}

func (n *Node) template(nameOrDigest string) (nodeapi.Template, bool) {
	if t, ok := n.templates[nameOrDigest]; ok {
		return t, true
	}
	for _, t := range n.templates {
		if t.Digest == nameOrDigest {
			return t, true
		}
	}
	return nodeapi.Template{}, false
}

func (n *Node) listTemplates(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	answer(w, n.templateList())
}

func (n *Node) templateList() []nodeapi.Template {
	out := []nodeapi.Template{}
	for _, t := range n.templates {
		out = append(out, t)
	}
	return out
}

func (n *Node) getTemplate(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, ok := n.template(r.PathValue("name"))
	if !ok {
		fail(w, errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %s is not here", r.PathValue("name")))
		return
	}
	answer(w, t)
}

func (n *Node) importTemplate(w http.ResponseWriter, r *http.Request) {
	if d := r.URL.Query().Get("digest"); d != "" {
		n.mu.Lock()
		defer n.mu.Unlock()
		t, ok := n.template(d)
		if !ok {
			fail(w, errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %s is not here", d))
			return
		}
		t.Name = r.PathValue("name")
		n.templates[t.Name] = t
		n.emit(nodeapi.Event{Type: nodeapi.EventTemplate})
		answer(w, t)
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, n.PutTemplate(r.PathValue("name"), b))
}

func (n *Node) exportTemplate(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	t, ok := n.template(r.PathValue("name"))
	b := n.archives[t.Digest]
	n.mu.Unlock()
	if !ok {
		fail(w, errorf(http.StatusNotFound, api.CodeUnknownTemplate, "template %s is not here", r.PathValue("name")))
		return
	}
	_, _ = w.Write(b)
}

func (n *Node) removeTemplate(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.templates, r.PathValue("name"))
	n.emit(nodeapi.Event{Type: nodeapi.EventTemplate})
	w.WriteHeader(http.StatusNoContent)
}
