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

func (n *Node) postClaim(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.ClaimRequest
	if !decode(w, r, &req) {
		return
	}
	sb, err := n.claim(api.SandboxID(r.PathValue("id")), req)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, sb)
}

func (n *Node) postClaims(w http.ResponseWriter, r *http.Request) {
	var req nodeapi.ClaimsRequest
	if !decode(w, r, &req) {
		return
	}
	reply := nodeapi.ClaimsReply{Errors: make([]*api.Error, len(req.Claims))}
	for i, c := range req.Claims {
		if _, err := n.claim(c.ID, c.ClaimRequest); err != nil {
			reply.Errors[i] = api.AsError(err)
		}
	}
	answer(w, reply)
}

func (n *Node) claim(id api.SandboxID, req nodeapi.ClaimRequest) (nodeapi.Sandbox, error) {
	if h := n.hook(); h.BeforeClaim != nil {
		if err := h.BeforeClaim(id); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	rec := n.sandboxes[id]
	switch {
	case rec == nil:
		return nodeapi.Sandbox{}, errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s is not here", id)
	case rec.claims > 0 && rec.token == req.AccessToken:
		return rec.Sandbox, nil
	case !rec.Warm || rec.State != nodeapi.StateRunning:
		return nodeapi.Sandbox{}, errorf(http.StatusConflict, api.CodeConflict, "sandbox %s has its owner already", rec.ID)
	}
	rec.claims++
	rec.token, rec.Warm, rec.Deadline, rec.OnDeadline, rec.Metadata = req.AccessToken, false, req.Deadline, req.OnDeadline, req.Metadata
	if req.Network != nil {
		n.setNetwork(rec, req.Network)
	}
	n.arm(rec)
	n.emitSandbox(nodeapi.EventUpdated, rec)
	return rec.Sandbox, nil
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
