package fleettest

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Network returns the network settings that a sandbox has; nil: it was never given any.
func (n *Node) Network(id api.SandboxID) *nodeapi.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.sandboxes[id]; r != nil {
		return r.network
	}
	return nil
}

func (n *Node) putNetwork(w http.ResponseWriter, r *http.Request) {
	var want nodeapi.Network
	if !decode(w, r, &want) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	n.setNetwork(rec, &want)
	n.emitSandbox(nodeapi.EventUpdated, rec)
	answer(w, nodeapi.NetworkStatus{Enabled: true, Shape: want.Shape})
}

// setNetwork is called with the lock held.
func (n *Node) setNetwork(r *record, want *nodeapi.Network) {
	r.network, r.Policy = want, nodeapi.PolicyDigest(nil, "")
	if want != nil {
		r.Policy = nodeapi.PolicyDigest(want.Layers, want.Filled)
	}
}

// Reshape has a sandbox's link shaped as if a caller had asked for it.
func (n *Node) Reshape(id api.SandboxID, shape nodeapi.NetworkShape) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.sandboxes[id]; r != nil {
		r.network = &nodeapi.Network{Shape: &shape}
	}
}
