package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Pools keep sandboxes running that nobody has yet. It is asked on the way of every create, so it answers from memory, at once; calls may run
// side by side.
type Pools interface {
	// Take returns a slot that fits, which nobody else on this server gets until Done. ok is false where none is ready. pool is the pool
	// that such sandboxes come from; empty: there is none.
	Take(ask Ask) (slot Slot, pool api.PoolID, ok bool)
	// Done says what became of a Take: a slot that was taken, or found to be no good, is gone.
	Done(slot Slot, gone bool)
	// Count counts a create that a pool was there for.
	Count(pool api.PoolID, hit bool)
}

// Ask says what a slot must be like.
type Ask struct {
	Tenant    string
	Digest    string // of the template
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	QoS       string
	Profile   string
	Where     placement.Rules
}

// Slot is a sandbox of a pool that is ready.
type Slot struct {
	ID     api.SandboxID
	Pool   api.PoolID
	Node   api.NodeID
	Limits nodeapi.Limits // as its node enforces them
}

// maxClaims is how many slots one create tries before it starts a sandbox of its own.
const maxClaims = 4

// pooled reports whether a create asks for nothing that a slot has had to be made with.
func pooled(p CreateParams, from source) bool {
	return p.Main == nil && p.Hostname == "" && p.User == "" && p.Cwd == "" && p.Limits == (state.Limits{}) && !p.joins && from.snapshot.ID == ""
}

// claim gives a create a slot of a pool: one Raft entry, one call to the node. ok is false where the create must go its own way; pool is
// the one that it should have come from then.
func (s *Service) claim(ctx context.Context, p CreateParams, from source, st *steps) (sb state.Sandbox, pool api.PoolID, ok bool, err error) {
	if s.cfg.Pools == nil || p.dedicated || p.templateOf != "" || !pooled(p, from) { // slots are on nodes, and templates, of all
		return sb, "", false, nil
	}
	ask := Ask{
		Tenant: p.Caller.Tenant, Digest: from.digest(), CPUMillis: p.CPUMillis, MemoryMB: p.MemoryMB, DiskMB: p.DiskMB, QoS: p.QoS, Profile: p.Profile, Where: p.Where,
	}
	for range maxClaims {
		slot, of, found := s.cfg.Pools.Take(ask)
		pool = of
		if !found {
			break
		}
		sb, err = s.claimSlot(ctx, p, from, slot, st)
		if err == nil || !errors.Is(err, errSlotGone) {
			s.cfg.Pools.Count(pool, err == nil)
			return sb, pool, true, err
		}
	}
	if pool != "" {
		s.cfg.Pools.Count(pool, false)
	}
	return state.Sandbox{}, pool, false, nil
}

// errSlotGone is a slot that turned out not to be there any more: the next one may be.
var errSlotGone = errors.New("the slot is gone")

// claimSlot makes a slot the caller's. Once the entry is in the log it is his: what the node does not do now, the reconciler has it do.
func (s *Service) claimSlot(ctx context.Context, p CreateParams, from source, slot Slot, st *steps) (state.Sandbox, error) {
	gone := false
	defer func() { s.cfg.Pools.Done(slot, gone) }()
	node, err := s.cfg.Fleet.Client(slot.Node)
	if err != nil {
		gone = true
		return state.Sandbox{}, errSlotGone
	}
	intent := s.intent(p, from)
	intent.Request = p.ID
	intent.ID, intent.Node, intent.State, intent.StartedAt = slot.ID, slot.Node, state.Running, intent.CreatedAt
	intent.Pool, intent.Warm, intent.Limits = slot.Pool, true, Enforced(slot.Limits)
	if q := s.cfg.Quota; q != nil {
		if err := q.Reserve(intent.Tenant, intent.ID, state.Ask(nil, &intent)); err != nil {
			return state.Sandbox{}, err
		}
		defer q.Release(intent.Tenant, intent.ID)
	}
	if err := s.cfg.Crash(CrashBeforeClaim); err != nil {
		return state.Sandbox{}, err
	}
	r, err := s.cfg.State.Apply(ctx, &state.SlotClaim{Sandbox: intent})
	if errors.Is(err, state.ErrNotFound) {
		gone = true
		return state.Sandbox{}, errSlotGone
	}
	if errors.Is(err, state.ErrExists) { // an earlier create with the same id was served
		sb, err := s.again(r.Sandbox, intent)
		return sb, err
	}
	if err != nil {
		return state.Sandbox{}, stateError(intent.ID, err)
	}
	gone = true
	st.done(StepIntent)
	if err := s.cfg.Crash(CrashAfterClaim); err != nil {
		return state.Sandbox{}, err
	}
	owner, err := s.tenantOf(r.Sandbox.Tenant)
	var want nodeapi.ClaimRequest
	if err == nil {
		want, err = ClaimRequest(r.Sandbox, owner, s.cfg.Secrets)
	}
	if err == nil {
		err = claimOn(ctx, node, slot.ID, want)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Logger.Warn("slot of a pool cannot be claimed", "sandbox", slot.ID, "node", slot.Node, "error", err)
			_ = s.abandon(ctx, r.Sandbox, fmt.Errorf("claim: %w", err))
			return state.Sandbox{}, errSlotGone
		}
		return state.Sandbox{}, s.abandon(ctx, r.Sandbox, ctx.Err())
	}
	st.done(StepClaim)
	if err := s.cfg.Crash(CrashAfterFact); err != nil {
		return state.Sandbox{}, err
	}
	if err := ctx.Err(); err != nil { // nobody is there to use it
		return state.Sandbox{}, s.abandon(ctx, r.Sandbox, err)
	}
	return r.Sandbox, nil
}

// claimOn claims a slot on its node, together with others where that does not make those wait.
func claimOn(ctx context.Context, node *nodeapi.Client, id api.SandboxID, want nodeapi.ClaimRequest) error {
	if len(want.Env) == 0 {
		return node.ClaimTogether(ctx, id, want)
	}
	_, err := node.Claim(ctx, id, want)
	return err
}

// again answers a repeated create with the sandbox that the first one got from a pool. One that is still starting came another way, and has somebody
// who waits for it.
func (s *Service) again(old, intent state.Sandbox) (state.Sandbox, error) {
	if old.State == state.Starting {
		return state.Sandbox{}, errSlotGone
	}
	return same(old, intent)
}

// ClaimRequest is what a node is asked for, to give a slot to the sandbox that it has become. It follows from the records alone, so that a claim
// that was not heard of is repeated as it was.
func ClaimRequest(sb state.Sandbox, owner state.Tenant, secrets Secrets) (nodeapi.ClaimRequest, error) {
	network, err := networkOf(sb, owner, secrets)
	if err != nil {
		return nodeapi.ClaimRequest{}, err
	}
	return nodeapi.ClaimRequest{
		Env: maps.Clone(sb.EnvVars), Deadline: sb.EndAt, OnDeadline: onDeadline(sb.Lifecycle), Network: network, AccessToken: sb.EnvdToken,
		Metadata: map[string]string{"tenant": sb.Tenant, "template": sb.Template, nodeapi.MetaTemplateID: sb.TemplateID},
	}, nil
}
