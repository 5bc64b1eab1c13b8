package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Claim gives a warm sandbox to whom it is for. What the request asks for holds before the record says that it is claimed, and
// nobody reaches the sandbox before the record does: a daemon that is killed in between leaves one that can be claimed again.
func (n *Node) Claim(ctx context.Context, id api.SandboxID, req nodeapi.ClaimRequest) (nodeapi.Sandbox, error) {
	if err := n.checkClaim(&req); err != nil {
		return nodeapi.Sandbox{}, err
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	hash, err := claimHash(req)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	b.turn.Lock() // no pause, and no other claim
	defer b.turn.Unlock()
	b.mu.Lock()
	rec := b.rec
	b.mu.Unlock()
	switch {
	case rec.Claim != "" && rec.Claim == hash:
		return rec.Sandbox, nil
	case rec.Claim != "" || !rec.Sandbox.Warm:
		return nodeapi.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s has its owner already", id)
	case rec.Sandbox.State != nodeapi.StateRunning:
		return nodeapi.Sandbox{}, notRunning(rec.Sandbox)
	}
	if err := checkDeadline(req.Deadline, time.Now()); err != nil {
		return nodeapi.Sandbox{}, err
	}
	same, err := sameNetwork(rec.Network, req.Network)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	if req.Network != nil && !same && n.network != nil {
		if _, err := n.SetNetwork(id, *req.Network); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	if req.Limits != (nodeapi.Limits{}) {
		if _, err := n.SetLimits(id, req.Limits); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	if err := n.claimEnv(ctx, b, req.Env); err != nil {
		return nodeapi.Sandbox{}, err
	}
	return n.recordClaim(b, req, hash)
}

// checkClaim checks what a create would.
func (n *Node) checkClaim(req *nodeapi.ClaimRequest) error {
	switch req.OnDeadline {
	case "", nodeapi.DeadlineStop, nodeapi.DeadlinePause:
	default:
		return invalid("on_deadline: %.40q is neither %s nor %s", req.OnDeadline, nodeapi.DeadlineStop, nodeapi.DeadlinePause)
	}
	if !req.Deadline.IsZero() {
		req.Deadline = req.Deadline.UTC().Round(0)
	}
	if req.Network != nil {
		if _, err := n.settings(req.Network); err != nil {
			return err
		}
	}
	return checkEnv(req.Env)
}

// claimHash names a claim by its content, but for the deadline, which may be moved between two attempts.
func claimHash(req nodeapi.ClaimRequest) (string, error) {
	req.Deadline = time.Time{}
	b, err := json.Marshal(req) // maps in the order of their keys
	if err != nil {
		return "", fmt.Errorf("claim request: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// claimEnv gives a sandbox the environment of who claims it. The servers that its template has started without it are started anew.
func (n *Node) claimEnv(ctx context.Context, b *box, env map[string]string) error {
	if len(env) == 0 {
		return nil
	}
	inst, err := b.running()
	if err != nil {
		return err
	}
	g := inst.Guest()
	var list []string
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	if err := g.SetEnv(ctx, list); err != nil {
		return guestGone(b, err)
	}
	b.activation.Lock()
	err = n.endServers(ctx, g)
	b.activation.Unlock()
	if err != nil {
		return guestGone(b, err)
	}
	n.prestart(b, g, b.lease.Root)
	return nil
}

// endServers ends the servers that the node started by the template's files.
func (n *Node) endServers(ctx context.Context, g guestClient) error {
	all, err := g.List(ctx)
	if err != nil {
		return err
	}
	for _, p := range all {
		if !strings.HasPrefix(p.Tag, portTag) || p.Exit != nil {
			continue
		}
		if err := g.Signal(ctx, guest.SignalRequest{PID: p.PID, Signal: int(unix.SIGKILL), Group: true}); err != nil {
			return err
		}
		for end := time.Now().Add(activeTimeout); ; {
			up, err := serverRuns(ctx, g, p.Tag)
			if err != nil {
				return err
			}
			if !up {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("process %s (%d) does not end", p.Tag, p.PID)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

// recordClaim makes a claim hold.
func (n *Node) recordClaim(b *box, req nodeapi.ClaimRequest, hash string) (nodeapi.Sandbox, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.State != nodeapi.StateRunning {
		return nodeapi.Sandbox{}, notRunning(b.rec.Sandbox)
	}
	old := b.rec
	b.rec.Claim, b.rec.Token = hash, req.AccessToken
	if len(req.Env) > 0 {
		b.rec.Env = maps.Clone(b.rec.Env)
		if b.rec.Env == nil {
			b.rec.Env = map[string]string{}
		}
		maps.Copy(b.rec.Env, req.Env)
	}
	s := &b.rec.Sandbox
	s.Warm, s.Deadline, s.OnDeadline = false, req.Deadline, req.OnDeadline
	s.Steps = nil // of the making of the slot, which nobody waited for
	if req.Metadata != nil {
		s.Metadata = req.Metadata
	}
	if err := n.records.put(&b.rec); err != nil {
		b.rec = old
		return nodeapi.Sandbox{}, err
	}
	n.deadlines.set(b.id, s.Deadline)
	n.note(b, logbook.Info, "sandbox claimed", nil)
	n.metrics.IncrCounter([]string{"claims"}, 1)
	sb := *s
	n.hub.publish(nodeapi.EventUpdated, b.id, &sb)
	return sb, nil
}

func (n *Node) postClaim(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.ClaimRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	sb, err := n.Claim(r.Context(), id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, sb)
	return nil
}

// claimsAtOnce is how many claims of one request are worked on at a time.
const claimsAtOnce = 4

// postClaims is several claims in one request.
func (n *Node) postClaims(w http.ResponseWriter, r *http.Request) error {
	var req nodeapi.ClaimsRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if len(req.Claims) == 0 || len(req.Claims) > nodeapi.MaxClaims {
		return invalid("claims: %d, 1 to %d are allowed", len(req.Claims), nodeapi.MaxClaims)
	}
	reply := nodeapi.ClaimsReply{Errors: make([]*api.Error, len(req.Claims))}
	var g errgroup.Group
	g.SetLimit(claimsAtOnce)
	for i, c := range req.Claims {
		g.Go(func() error {
			id, err := api.ParseSandboxID(string(c.ID))
			if err != nil {
				err = invalid("claims[%d].id: %v", i, err)
			} else {
				_, err = n.Claim(r.Context(), id, c.ClaimRequest)
			}
			if err != nil {
				reply.Errors[i] = apiError(err)
			}
			return nil
		})
	}
	_ = g.Wait() // none fails
	writeJSON(w, http.StatusOK, reply)
	return nil
}
