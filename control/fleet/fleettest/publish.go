package fleettest

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// firstPort is the first of the ports that the node chooses.
const firstPort = 30000

// TakePort has a port of the node be somebody else's.
func (n *Node) TakePort(port int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		n.ports = map[int]bool{}
	}
	n.ports[port] = true
}

func (n *Node) getPublished(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec := n.find(w, r); rec != nil {
		answer(w, append([]nodeapi.PublishedPort{}, rec.published...))
	}
}

func (n *Node) putPublished(w http.ResponseWriter, r *http.Request) {
	var want []nodeapi.PublishedPort
	if !decode(w, r, &want) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	for i := range want {
		p := &want[i]
		if n.ports[p.NodePort] {
			fail(w, api.Errorf(http.StatusConflict, api.CodeConflict, "publish %s port %d: address already in use", p.Proto, p.Port))
			return
		}
		for p.NodePort == 0 || n.ports[p.NodePort] {
			p.NodePort = max(p.NodePort, firstPort) + 1
		}
	}
	rec.published = want
	answer(w, want)
}
