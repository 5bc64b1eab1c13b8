package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

const (
	parkTimeout   = 3 * time.Second
	lateResume    = 100 * time.Millisecond // that a resume may take of the time that the sandbox has
	freezeTimeout = 10 * time.Second
)

// pausable is an instance that can stand still and go to disk, as *sandbox.Sandbox is.
type pausable interface {
	instance
	// Park ends the node's conversations with PID 1, and lets none begin until Thaw.
	Park(ctx context.Context) error
	Freeze(ctx context.Context) error
	FreezeAgain(ctx context.Context) error // of one that an earlier daemon parked
	Thaw(ctx context.Context) error
	OwnsNetwork() (bool, error)
	Uncheckpointable() ([]checkpoint.Obstacle, error)
	// CopyAhead copies memory while the instance runs, for a Checkpoint that follows at once; nil: it does not.
	CopyAhead(ctx context.Context, e *checkpoint.Engine, dir sandbox.CheckpointDir, least int64) (*checkpoint.Ahead, error)
	MakeRoom(e *checkpoint.Engine) (*checkpoint.Room, error)
	Checkpoint(ctx context.Context, criu *checkpoint.Dumper, dir sandbox.CheckpointDir, o sandbox.CheckpointOptions) (checkpoint.Dump, error)
	SyncLayer(also ...string) error
	End(ctx context.Context) error // leaves nothing but the writable layer; may be repeated until it returns nil
	Wake(ctx context.Context, env []string) error
}

// restorer is a runtime that brings checkpoints back.
type restorer interface {
	Restore(ctx context.Context, c sandbox.RestoreConfig) (instance, error)
}

func (s *sandboxes) Restore(ctx context.Context, c sandbox.RestoreConfig) (instance, error) {
	c.StateDir, c.RunDir, c.Cgroups, c.Init, c.Disk, c.Engine = s.stateDir, s.runDir, s.cgroups, s.init, s.disk, s.engine
	sb, err := sandbox.Restore(ctx, c)
	if err != nil {
		return nil, err // not a typed nil
	}
	return realInstance{sb}, nil
}

// pauseRecord is what a record keeps of a pause beyond what the API tells.
type pauseRecord struct {
	Goal nodeapi.Depth    `json:"goal"`           // how far the pause shall go
	Dump *checkpoint.Dump `json:"dump,omitempty"` // where checkpointed
	// Tenant is whose the copy in the snapshot store is, where Sandbox.Pause.Snapshot names one.
	Tenant string `json:"tenant,omitempty"`
}

// Pause pauses a sandbox, or deepens its pause.
func (n *Node) Pause(ctx context.Context, id api.SandboxID, req nodeapi.PauseRequest) (nodeapi.Sandbox, error) {
	set(&req.Depth, nodeapi.DepthCheckpointed)
	switch req.Depth {
	case nodeapi.DepthFrozen, nodeapi.DepthCheckpointed, nodeapi.DepthFiles:
	default:
		return nodeapi.Sandbox{}, invalid("depth: %.40q is none of %s, %s, %s", req.Depth, nodeapi.DepthFrozen, nodeapi.DepthCheckpointed, nodeapi.DepthFiles)
	}
	if req.Store != "" {
		if err := checkSnapshot(req.Store, req.Tenant); err != nil {
			return nodeapi.Sandbox{}, err
		}
		if req.Depth != nodeapi.DepthCheckpointed {
			return nodeapi.Sandbox{}, invalid("store: only a pause of depth %s can be stored", nodeapi.DepthCheckpointed)
		}
	}
	if req.StoreOnly && req.Store == "" {
		return nodeapi.Sandbox{}, invalid("store_only: store is missing")
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	b.turn.Lock()
	defer b.turn.Unlock()
	sb := b.view()
	ran := sb.State == nodeapi.StateRunning
	if req.Depth != nodeapi.DepthFrozen {
		if err := holdsNothing(sb); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	switch {
	case req.StoreOnly && ran:
		return nodeapi.Sandbox{}, api.Errorf(http.StatusConflict, nodeapi.CodeNotPaused, "sandbox %s is %s", id, sb.State)
	case req.Depth == nodeapi.DepthFiles && sb.Main != 0:
		return nodeapi.Sandbox{}, api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s lives as long as its own command: no pause can keep its files alone", id)
	case ran:
		if req.Depth == nodeapi.DepthCheckpointed && req.Wait {
			// It runs on for as long as that takes.
			if err := n.awaitPages(ctx, b); err != nil {
				return nodeapi.Sandbox{}, err
			}
		}
		if err := n.freeze(ctx, b, req.Depth); err != nil {
			return nodeapi.Sandbox{}, err
		}
	case sb.State != nodeapi.StatePaused:
		return nodeapi.Sandbox{}, notRunning(sb)
	}
	if req.Depth == nodeapi.DepthFiles && b.view().Pause.Depth != nodeapi.DepthFiles {
		if err := n.keepFiles(b); err != nil {
			if ran {
				err = errors.Join(err, n.thaw(context.WithoutCancel(ctx), b, sb.Deadline))
			}
			return nodeapi.Sandbox{}, err
		}
	}
	if req.Depth == nodeapi.DepthCheckpointed && b.view().Pause.Depth == nodeapi.DepthFrozen {
		if err := n.checkpointable(b); err != nil {
			if ran {
				err = errors.Join(err, n.thaw(ctx, b, sb.Deadline))
			}
			return nodeapi.Sandbox{}, err
		}
		if !req.Wait {
			n.checkpointLater(b, req)
			return b.view(), nil
		}
		if err := n.checkpoint(ctx, b); err != nil {
			if ran {
				err = errors.Join(err, n.thaw(context.WithoutCancel(ctx), b, sb.Deadline))
			}
			return nodeapi.Sandbox{}, err
		}
	}
	switch {
	case req.Store == "" || b.view().Pause.Snapshot == req.Store:
	case req.Wait:
		if err := n.storePaused(ctx, b, req); err != nil {
			return nodeapi.Sandbox{}, err
		}
	default:
		n.storeLater(b, req)
	}
	return b.view(), nil
}

// storeLater stores a checkpointed sandbox in the background. A resume gives that up.
func (n *Node) storeLater(b *box, req nodeapi.PauseRequest) {
	ctx, cancel := context.WithCancel(n.ctx)
	b.mu.Lock()
	b.giveUp = cancel
	b.mu.Unlock()
	n.wg.Go(func() {
		defer cancel()
		b.turn.Lock()
		defer b.turn.Unlock()
		if sb := b.view(); sb.State != nodeapi.StatePaused || sb.Pause.Depth != nodeapi.DepthCheckpointed || sb.Pause.Snapshot == req.Store || ctx.Err() != nil {
			return
		}
		if err := n.storePaused(ctx, b, req); err != nil && ctx.Err() == nil {
			n.log.Warn("checkpoint stays on this node", "sandbox", b.id, "error", err)
		}
	})
}

// pausable returns the instance of a box, which must be one that can be paused.
func (b *box) pausable() (pausable, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.inst.(pausable)
	if !ok {
		return nil, api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "sandbox %s cannot be paused on this node", b.id)
	}
	return p, nil
}

// checkpointable says why a sandbox cannot be checkpointed, if so.
func (n *Node) checkpointable(b *box) error {
	if n.engine == nil {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "checkpoints: %v", n.noEngine)
	}
	inst, err := b.pausable()
	if err != nil {
		return err
	}
	owns, err := inst.OwnsNetwork()
	if err != nil {
		return err
	}
	if !owns {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported,
			"sandbox %s was made while this node could make no checkpoints, and its network is one that none holds: it can be paused frozen", b.id)
	}
	obstacles, err := inst.Uncheckpointable()
	if err != nil {
		return err
	}
	if len(obstacles) == 0 {
		return nil
	}
	var words []string
	for _, o := range obstacles {
		words = append(words, o.String())
	}
	return api.Errorf(http.StatusConflict, nodeapi.CodeUncheckpointable, "sandbox %s cannot be checkpointed: %s", b.id, strings.Join(words, "; "))
}

// freeze stops a running sandbox. b.turn is held.
func (n *Node) freeze(ctx context.Context, b *box, goal nodeapi.Depth) error {
	inst, err := b.pausable()
	if err != nil {
		return err
	}
	pctx, cancel := context.WithTimeout(ctx, parkTimeout)
	err = inst.Park(pctx)
	cancel()
	if err != nil && goal == nodeapi.DepthCheckpointed {
		// Of one that cannot be asked, conversations may be left, which no checkpoint can hold.
		terr := inst.Thaw(context.WithoutCancel(ctx))
		return errors.Join(fmt.Errorf("sandbox %s does not park: %w", b.id, err), terr)
	}
	failpoint.At("pause.parked")
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
	defer cancel()
	if err := inst.Freeze(fctx); err != nil {
		return errors.Join(fmt.Errorf("freeze sandbox %s: %w", b.id, err), inst.Thaw(fctx))
	}
	failpoint.At("pause.frozen")
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.rec.Sandbox.State; s != nodeapi.StateRunning {
		return errors.Join(notRunning(b.rec.Sandbox), inst.Thaw(fctx))
	}
	old := b.rec
	b.rec.Sandbox.State = nodeapi.StatePaused
	b.rec.Sandbox.Deadline = time.Time{}
	b.rec.Sandbox.Pause = &nodeapi.Pause{Depth: nodeapi.DepthFrozen, At: time.Now().UTC().Round(0), Checkpointing: goal == nodeapi.DepthCheckpointed}
	b.rec.Pause = &pauseRecord{Goal: goal}
	if err := n.records.put(&b.rec); err != nil {
		b.rec = old
		return errors.Join(err, inst.Thaw(fctx))
	}
	n.deadlines.set(b.id, time.Time{})
	n.tell(b, nodeapi.EventPaused)
	n.note(b, logbook.Info, "sandbox paused", nil)
	failpoint.At("pause.recorded")
	return nil
}

// tell publishes an event. b.mu is held.
func (n *Node) tell(b *box, t nodeapi.EventType) {
	sb := b.rec.Sandbox
	n.hub.publish(t, b.id, &sb)
}

// thaw lets a frozen sandbox go on. The record comes first: what a record calls running is thawed by the next daemon. b.turn is held.
func (n *Node) thaw(ctx context.Context, b *box, deadline time.Time) error {
	inst, err := b.pausable()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.rec
	n.markRunning(b, deadline)
	if err := n.records.put(&b.rec); err != nil {
		b.rec = old
		return err
	}
	failpoint.At("resume.recorded")
	tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
	defer cancel()
	if err := inst.Thaw(tctx); err != nil {
		return fmt.Errorf("thaw sandbox %s: %w", b.id, err) // it is tried again with the next start at the latest
	}
	failpoint.At("resume.thawed")
	n.deadlines.set(b.id, deadline)
	n.tell(b, nodeapi.EventResumed)
	n.note(b, logbook.Info, "sandbox resumed", nil)
	n.logAgain(b, inst.Guest())
	return nil
}

// markRunning makes the record that of a running sandbox. b.mu is held.
func (n *Node) markRunning(b *box, deadline time.Time) {
	b.rec.Sandbox.State, b.rec.Sandbox.Pause, b.rec.Pause = nodeapi.StateRunning, nil, nil
	b.rec.Sandbox.Deadline = deadline
}

// Resume lets a paused sandbox go on. Of one that runs it changes the deadline.
func (n *Node) Resume(ctx context.Context, id api.SandboxID, req nodeapi.ResumeRequest) (nodeapi.Sandbox, error) {
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	asked := time.Now()
	// What is asked for is how long it runs: the time that a dump under way takes to end, which is never broken off, is not its own.
	later := func() time.Time {
		if req.Deadline.IsZero() {
			return time.Time{}
		}
		late := time.Since(asked)
		if late < lateResume {
			late = 0
		}
		return req.Deadline.Add(late).UTC().Round(0)
	}
	b.giveUpCheckpoint()
	b.turn.Lock()
	defer b.turn.Unlock()
	deadline := later()
	sb := b.view()
	switch sb.State {
	case nodeapi.StatePaused:
	case nodeapi.StateRunning:
		return n.SetDeadline(id, deadline)
	default:
		return nodeapi.Sandbox{}, api.Errorf(http.StatusConflict, nodeapi.CodeNotPaused, "sandbox %s is %s", id, sb.State)
	}
	added, err := n.networkAgain(b, req.Network)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	switch {
	case req.Fresh || sb.Pause.Depth == nodeapi.DepthFiles:
		err = n.boot(ctx, b, deadline)
	case sb.Pause.Depth == nodeapi.DepthFrozen:
		err = n.thaw(ctx, b, deadline)
	default:
		err = n.restore(ctx, b, deadline)
	}
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	if added {
		n.trustAdded(b)
	}
	if now := later(); now.After(deadline) {
		return n.SetDeadline(id, now)
	}
	return b.view(), nil
}
