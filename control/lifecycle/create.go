package lifecycle

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Points at which a test may let the service die during a create.
const (
	CrashBeforeIntent = "before_intent"
	CrashBeforePlace  = "before_place"
	CrashAfterPlace   = "after_place"
	CrashBeforeFact   = "before_fact"
	CrashAfterFact    = "after_fact"
	CrashBeforeClaim  = "before_claim"
	CrashAfterClaim   = "after_claim"
)

// Create implements API. Two Raft commits: the intent before the placement, the fact after the node's report.
func (s *Service) Create(ctx context.Context, p CreateParams) (state.Sandbox, []guest.Step, error) {
	st, asked := newSteps(), p
	owner, err := s.tenantOf(p.Caller.Tenant)
	if err != nil {
		return state.Sandbox{}, nil, err
	}
	fill(&p, owner.Defaults)
	p.dedicated, p.templateOf = owner.Isolation.Compute == state.Dedicated, ownTemplates(owner)
	if err := s.validate(&p); err != nil {
		return state.Sandbox{}, nil, err
	}
	if q := s.cfg.Quota; q != nil {
		if err := q.Create(p.Caller.Tenant); err != nil {
			return state.Sandbox{}, nil, err
		}
	}
	st.done(StepValidate)
	from, err := s.source(ctx, p.Caller.Tenant, p.Template)
	if err != nil {
		return state.Sandbox{}, st.list, err
	}
	st.done(StepTemplate)
	asBuilt(&p, asked, from.template)
	from.inherit(&p, asked)
	if p.Where, err = placement.Rules(from.template.Where).And(p.Where); err != nil {
		return state.Sandbox{}, st.list, err
	}
	if err := withDevices(p, from); err != nil {
		return state.Sandbox{}, st.list, err
	}
	if err := bound(owner, p.CPUMillis, p.MemoryMB, p.DiskMB); err != nil {
		return state.Sandbox{}, st.list, err
	}
	if p.Network, p.rates, err = shaped(p.Network, owner); err != nil {
		return state.Sandbox{}, st.list, err
	}
	if from.node, p.joins, err = s.beside(p.Caller.Tenant, p.Network, from.node); err != nil {
		return state.Sandbox{}, st.list, err
	}
	sb, pool, ok, err := s.claim(ctx, p, from, st)
	if ok {
		return sb, st.list, err
	}
	intent := s.intent(p, from)
	intent.Pool = pool
	waiter := s.cfg.Fleet.Await(intent.ID)
	defer waiter.Close()
	if err := s.cfg.Crash(CrashBeforeIntent); err != nil {
		return state.Sandbox{}, st.list, err
	}
	if q := s.cfg.Quota; q != nil {
		if err := q.Reserve(intent.Tenant, intent.ID, state.Ask(nil, &intent)); err != nil {
			return state.Sandbox{}, st.list, err
		}
		defer q.Release(intent.Tenant, intent.ID)
	}
	r, err := s.cfg.State.Apply(ctx, &state.SandboxCreate{Sandbox: intent})
	if errors.Is(err, state.ErrExists) && p.ID != "" {
		sb, err := s.join(ctx, r.Sandbox, intent, waiter)
		return sb, st.list, err
	}
	if err != nil {
		return state.Sandbox{}, st.list, stateError(intent.ID, err)
	}
	st.done(StepIntent)
	sb, err = s.start(ctx, r.Sandbox, p, from, st, waiter)
	if err == nil {
		if err = s.serve(ctx, sb, from.template); err != nil {
			err = s.abandon(ctx, sb, err)
		}
	}
	return sb, st.list, err
}

// intent is the record of a sandbox that shall exist.
func (s *Service) intent(p CreateParams, from source) state.Sandbox {
	now := s.cfg.Now().UTC()
	id := p.ID
	if id == "" {
		id = s.cfg.NewID()
	}
	var envd, traffic string
	if !p.Open {
		envd = newToken()
	}
	if p.PrivateTraffic {
		traffic = newToken()
	}
	shown := from.shown(p)
	return state.Sandbox{
		EnvdToken: envd, TrafficToken: traffic, TemplateID: shown.id, Alias: shown.alias,
		ID: id, Tenant: p.Caller.Tenant, Template: p.Template, Digest: from.digest(), Origin: from.snapshot.ID, State: state.Starting,
		CreatedAt: now, EndAt: now.Add(p.Timeout), MaxEndAt: now.Add(s.cfg.MaxLifetime), Timeout: p.Timeout,
		CPUMillis: p.CPUMillis, MemoryMB: p.MemoryMB, DiskMB: p.DiskMB, QoS: p.QoS, Limits: p.Limits, Where: string(p.Where),
		Metadata: p.Metadata, EnvVars: p.EnvVars, KeyID: p.Caller.KeyID, Owner: p.Caller.User(), Lifecycle: p.Lifecycle,
		AllowInternetAccess: p.AllowInternetAccess, Network: p.Network, TemplateNetwork: from.network(), RateIn: p.rates.in, RateOut: p.rates.out,
		Creator: s.cfg.Run,
	}
}

// start brings a sandbox whose intent is recorded to run, or fails and cleans it up.
func (s *Service) start(ctx context.Context, sb state.Sandbox, p CreateParams, from source, st *steps, w *fleet.Waiter) (state.Sandbox, error) {
	if err := s.cfg.Crash(CrashBeforePlace); err != nil {
		return state.Sandbox{}, err
	}
	if err := s.someNode(); err != nil {
		return state.Sandbox{}, s.abandon(ctx, sb, err)
	}
	within, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, startTimeout(sb.ID, s.cfg.StartTimeout))
	defer cancel()
	want := from.request(request(sb, p))
	owner, err := s.tenantOf(sb.Tenant)
	if err == nil {
		want.Network, err = networkOf(sb, owner, s.cfg.Secrets)
	}
	if err != nil {
		return state.Sandbox{}, s.abandon(ctx, sb, err)
	}
	if err := s.cfg.Placer.Place(within, placement.Request{
		Tenant: sb.Tenant, Dedicated: p.dedicated, Node: want, On: from.node, Rules: p.Where, Prefer: s.Prefer(p.Where),
	}); err != nil {
		return state.Sandbox{}, s.abandon(ctx, sb, ContextCause(within, err))
	}
	st.done(StepPlace)
	if err := s.cfg.Crash(CrashAfterPlace); err != nil {
		return state.Sandbox{}, err
	}
	found, err := Report(within, s.cfg.Placer, sb.ID, w)
	if err != nil {
		return state.Sandbox{}, s.abandon(ctx, sb, err)
	}
	if found.Sandbox.TemplateOf != p.templateOf {
		return state.Sandbox{}, s.abandon(ctx, sb, fmt.Errorf("sandbox %s: node %s made it of a template of %q, not of %q",
			sb.ID, found.Node, found.Sandbox.TemplateOf, p.templateOf))
	}
	st.done(StepReport)
	if err := s.cfg.Crash(CrashBeforeFact); err != nil {
		return state.Sandbox{}, err
	}
	r, err := s.cfg.State.Apply(context.WithoutCancel(ctx), runningCommand(found))
	if errors.Is(err, state.ErrConflict) { // another node has it: to stop this id would end that one
		return state.Sandbox{}, stateError(sb.ID, err)
	}
	if err != nil {
		return state.Sandbox{}, s.abandon(ctx, sb, stateError(sb.ID, err))
	}
	st.done(StepFact)
	st.node(found.Sandbox.Steps)
	if err := s.cfg.Crash(CrashAfterFact); err != nil {
		return state.Sandbox{}, err
	}
	if err := ctx.Err(); err != nil { // nobody is there to use it
		return state.Sandbox{}, s.abandon(ctx, sb, err)
	}
	return r.Sandbox, nil
}

// Report waits for the node's report of a sandbox that was placed, or for the placer to know that there will be none.
func Report(ctx context.Context, placer placement.Placer, id api.SandboxID, w *fleet.Waiter) (fleet.Found, error) {
	wait, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if watcher, ok := placer.(placement.Watcher); ok {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := watcher.Watch(wait, id); wait.Err() == nil {
				cancel(err)
			}
		}()
		defer func() {
			cancel(nil)
			<-done
		}()
	}
	found, err := w.Ran(wait)
	if err != nil {
		return fleet.Found{}, err
	}
	if found.Sandbox.StartedAt.IsZero() {
		return fleet.Found{}, endedEarly(found.Sandbox)
	}
	return found, nil
}

// join answers a repeated create with the sandbox that exists.
func (s *Service) join(ctx context.Context, old, intent state.Sandbox, w *fleet.Waiter) (state.Sandbox, error) {
	if old.State == state.Starting && old.Tenant == intent.Tenant && old.Template == intent.Template {
		within, cancel := context.WithTimeoutCause(ctx, s.cfg.StartTimeout, startTimeout(old.ID, s.cfg.StartTimeout))
		defer cancel()
		found, err := Report(within, s.cfg.Placer, old.ID, w)
		if err != nil {
			return state.Sandbox{}, ContextCause(within, err)
		}
		r, err := s.cfg.State.Apply(ctx, runningCommand(found))
		return r.Sandbox, stateError(old.ID, err)
	}
	return same(old, intent)
}

// same returns the sandbox that a repeated create finds, where it is the one that was asked for.
func same(old, intent state.Sandbox) (state.Sandbox, error) {
	if old.Tenant != intent.Tenant || old.Template != intent.Template {
		return state.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s exists and is another one", cmp.Or(old.Request, old.ID))
	}
	if old.State.Ended() || old.State == state.Stopping {
		return state.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s existed and is %s: %s", old.ID, old.State, old.Reason)
	}
	return old, nil
}

// abandon records that a create failed and removes what it may have left, whether or not the client is still there. It
// returns err, as what the client is told. What it cannot do now the reconciler does.
func (s *Service) abandon(ctx context.Context, sb state.Sandbox, err error) error {
	if errors.Is(err, state.ErrUnknownOutcome) || errors.Is(err, state.ErrNoLeader) {
		return err // the next leader finishes or fails it
	}
	reason := err.Error()
	if ctx.Err() != nil {
		reason = "the client gave up"
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CleanTimeout)
	defer cancel()
	_, applyErr := s.cfg.State.Apply(clean, &state.SandboxEnd{Ends: []state.End{{
		ID: sb.ID, State: state.Failed, Reason: reason, At: s.cfg.Now().UTC(),
	}}})
	if applyErr != nil {
		s.cfg.Logger.Warn("failed create not recorded", "sandbox", sb.ID, "error", applyErr)
		return err
	}
	if stopErr := s.cfg.Placer.Stop(clean, sb.ID); stopErr != nil {
		s.cfg.Logger.Warn("failed create not cleaned up yet", "sandbox", sb.ID, "error", stopErr)
	}
	return err
}

// request is what the node is asked for.
func request(sb state.Sandbox, p CreateParams) nodeapi.CreateRequest {
	return nodeapi.CreateRequest{
		ID: sb.ID, Template: sb.Digest, Hostname: p.Hostname, Env: sb.EnvVars, User: p.User, Cwd: p.Cwd, Profile: p.Profile,
		QoS:         sb.QoS,
		Limits:      NodeLimits(sb),
		Deadline:    sb.EndAt,
		OnDeadline:  onDeadline(sb.Lifecycle),
		Main:        p.Main,
		Owner:       nodeapi.Owner{Kind: placement.OwnerKind},
		Metadata:    map[string]string{"tenant": sb.Tenant, "template": sb.Template, nodeapi.MetaTemplateID: sb.TemplateID},
		AccessToken: sb.EnvdToken, TemplateOf: p.templateOf,
	}
}

func onDeadline(l state.Lifecycle) string {
	if l.OnTimeout == state.OnTimeoutPause && l.FilesOnly {
		return nodeapi.DeadlinePauseFiles
	}
	if l.OnTimeout == state.OnTimeoutPause {
		return nodeapi.DeadlinePause
	}
	return nodeapi.DeadlineStop
}

func runningCommand(f fleet.Found) *state.SandboxRunning {
	enforced := Enforced(f.Sandbox.Limits)
	return &state.SandboxRunning{
		ID: f.Sandbox.ID, Node: f.Node, Digest: f.Sandbox.Digest, StartedAt: f.Sandbox.StartedAt.UTC(), Limits: &enforced,
	}
}

func startTimeout(id api.SandboxID, d time.Duration) error {
	return api.Errorf(http.StatusGatewayTimeout, "sandbox_start_timeout", "sandbox %s was not running within %s of being placed", id, d)
}

func endedEarly(sb nodeapi.Sandbox) error {
	why := "without a word"
	if sb.Exit != nil {
		why = fmt.Sprintf("%s (exit code %d) %s", sb.Exit.Reason, sb.Exit.Code, sb.Exit.Message)
	}
	return api.Errorf(http.StatusInternalServerError, "sandbox_start_failed", "sandbox %s ended before it ran: %s", sb.ID, why)
}

// ContextCause returns why ctx ended, where that is why err came.
func ContextCause(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return context.Cause(ctx)
	}
	return err
}

// newToken returns a random token of 256 bits.
func newToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	return hex.EncodeToString(b[:])
}
