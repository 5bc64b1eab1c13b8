package fleettest

import (
	"net/http"
	"slices"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// OwnTemplates returns the copies of templates that the node has of tenants.
func (n *Node) OwnTemplates() []nodeapi.OwnTemplate {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.self.OwnTemplates)
}

// OwnTemplate has the node have one.
func (n *Node) OwnTemplate(o nodeapi.OwnTemplate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.own(o)
}

// DisownTemplates lets the node make no more of them: it uses the shared ones, without a word.
func (n *Node) DisownTemplates() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disowns = true
}

// own is OwnTemplate for who holds n.mu.
func (n *Node) own(o nodeapi.OwnTemplate) {
	if o.Tenant != "" && !slices.Contains(n.self.OwnTemplates, o) {
		n.self.OwnTemplates = append(slices.Clone(n.self.OwnTemplates), o)
		n.emit(nodeapi.Event{Type: nodeapi.EventTemplate})
	}
}

func (n *Node) deleteOwnTemplate(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	o := nodeapi.OwnTemplate{Tenant: r.PathValue("tenant"), Digest: r.PathValue("name")}
	n.self.OwnTemplates = slices.DeleteFunc(slices.Clone(n.self.OwnTemplates), func(x nodeapi.OwnTemplate) bool { return x == o })
	n.emit(nodeapi.Event{Type: nodeapi.EventTemplate})
	w.WriteHeader(http.StatusNoContent)
}
