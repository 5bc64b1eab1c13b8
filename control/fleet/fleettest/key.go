package fleettest

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// SnapshotKey returns the key that the node has, and how often it was given one.
func (n *Node) SnapshotKey() (key nodeapi.SnapshotKey, times int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.key, n.keys
}

func (n *Node) putSnapshotKey(w http.ResponseWriter, r *http.Request) {
	var key nodeapi.SnapshotKey
	if !decode(w, r, &key) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.key = key
	n.keys++
	w.WriteHeader(http.StatusNoContent)
}
