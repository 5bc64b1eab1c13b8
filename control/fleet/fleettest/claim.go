package fleettest

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Claims returns how often a sandbox was claimed, and the token of its claim.
func (n *Node) Claims(id api.SandboxID) (times int, token string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.sandboxes[id]; r != nil {
		return r.claims, r.token
	}
	return 0, ""
}

func (n *Node) claim(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.ClaimRequest
	if !decode(w, r, &req) {
		return
	}
	if h := n.hook(); h.BeforeClaim != nil {
		if err := h.BeforeClaim(api.SandboxID(r.PathValue("id"))); err != nil {
			fail(w, err)
			return
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.find(w, r)
	if rec == nil {
		return
	}
	switch {
	case rec.claims > 0 && rec.token == req.AccessToken:
		answer(w, rec.Sandbox)
		return
	case !rec.Warm || rec.State != nodeapi.StateRunning:
		fail(w, errorf(http.StatusConflict, api.CodeConflict, "sandbox %s has its owner already", rec.ID))
		return
	}
	rec.claims++
	rec.token, rec.Warm, rec.Deadline, rec.OnDeadline, rec.Metadata = req.AccessToken, false, req.Deadline, req.OnDeadline, req.Metadata
	if req.Network != nil {
		n.setNetwork(rec, req.Network)
	}
	n.arm(rec)
	n.emitSandbox(nodeapi.EventUpdated, rec)
	answer(w, rec.Sandbox)
}

// Touch changes every sandbox that runs and says so, each in an event of its own.
func (n *Node) Touch(change func(*nodeapi.Sandbox)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.sandboxes {
		if r.State == nodeapi.StateRunning {
			change(&r.Sandbox)
			n.emitSandbox(nodeapi.EventUpdated, r)
		}
	}
}
