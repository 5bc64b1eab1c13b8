package nodeapi

import (
	"context"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// ClaimRequest gives a warm sandbox to whom it is for: POST /v1/sandboxes/{id}/claim, answered with Sandbox once all of it
// holds. Repeating it changes nothing; another claim of a sandbox that is claimed, and a claim of one that was not made warm, is 409
// with api.CodeConflict. A claim that fails leaves it unclaimed; the caller removes it, since some of the request may hold by then.
type ClaimRequest struct {
	Env         map[string]string `json:"env,omitempty"` // of processes from now on; it takes precedence over what is there
	Limits      Limits            `json:"limits"`        // as in LimitsRequest; none: they stay
	Deadline    time.Time         `json:"deadline,omitzero"`
	OnDeadline  string            `json:"on_deadline,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"` // in place of what was there
	AccessToken string            `json:"access_token,omitempty"`
	Network     *Network          `json:"network,omitempty"` // nil: it stays
}

// Claim gives a warm sandbox to whom it is for.
func (c *Client) Claim(ctx context.Context, id api.SandboxID, req ClaimRequest) (Sandbox, error) {
	var s Sandbox
	return s, c.call(ctx, http.MethodPost, sandboxPath(id, "/claim"), nil, req, &s)
}

// MaxClaims is how many claims one request may hold.
const MaxClaims = 64

// ClaimsRequest is several claims, each of another sandbox: POST /v1/claims, answered with ClaimsReply once each of them holds or has failed. Each is as if it were
// alone.
type ClaimsRequest struct {
	Claims []OneClaim `json:"claims"`
}

// OneClaim is one of several.
type OneClaim struct {
	ID api.SandboxID `json:"id"`
	ClaimRequest
}

// ClaimsReply has an entry for each claim, in their order: null, or what it failed with.
type ClaimsReply struct {
	Errors []*api.Error `json:"errors"`
}
