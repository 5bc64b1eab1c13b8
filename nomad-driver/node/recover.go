package node

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	recoverParallel = 16
	houseInterval   = 30 * time.Second
	pruneAge        = 24 * time.Hour // of templates without a name
	sweepTimeout    = 5 * time.Minute
)

// recover joins the records with what is on the machine: sandboxes that run are taken over, those that ended meanwhile
// are told of with their real end, everything that has no record is removed. It runs before the API answers.
func (n *Node) recover() error {
	recs, bad, err := n.records.load()
	if err != nil {
		return err
	}
	for path, err := range bad {
		// Such a record is of no use: its sandbox, if there is one, is swept. The file is kept aside for a person to see.
		n.log.Error("record cannot be read; its sandbox is removed", "path", path, "error", err)
		if err := os.Rename(path, path+".bad"); err != nil {
			return fmt.Errorf("records: %w", err)
		}
	}
	var g errgroup.Group
	g.SetLimit(recoverParallel)
	var lost sync.Map // ids whose sandbox cannot be opened
	for _, rec := range recs {
		b := newBox(*rec)
		b.deleting = rec.Deleting
		close(b.created)
		n.boxes[b.id] = b
		if rec.Released {
			close(b.stopped)
			close(b.released)
			continue
		}
		n.ids.reserve(rec.IDBase)
		if l, err := n.acquire(rec.Sandbox.TemplateOf, rec.Sandbox.Digest); err == nil {
			b.lease = l
		}
		g.Go(func() error {
			inst, err := n.runtime.Open(rec.Ref)
			if err != nil {
				n.log.Error("sandbox cannot be found again", "sandbox", b.id, "error", err)
				lost.Store(b.id, err)
				return nil
			}
			b.inst = inst
			n.recoverSlot(b)
			return nil
		})
	}
	_ = g.Wait() // the functions return nil
	n.sweepWith(func(id api.SandboxID) bool {
		b, ok := n.boxes[id]
		return ok && b.inst != nil
	})
	n.startNetwork()
	for _, b := range n.boxes {
		n.takeOver(b)
		n.republish(b)
		if err, ok := lost.Load(b.id); ok {
			n.giveUp(b, err.(error)) //nolint:forcetypeassert // stored above
		}
		if b.deleting { // the API, which deletes, does not answer yet
			n.wg.Go(func() { n.remove(b) })
		}
	}
	n.sweepCheckpoints()
	n.log.Info("recovered", "records", len(recs), "running", n.running(), "epoch", n.hub.epoch)
	return nil
}

// takeOver goes on with a sandbox of an earlier daemon where that one stopped.
func (n *Node) takeOver(b *box) {
	if b.inst == nil {
		return
	}
	if err := n.takeOverPause(b); err != nil {
		n.log.Error("pause cannot be taken over", "sandbox", b.id, "error", err)
	}
	if b.inst == nil {
		return // checkpointed: nothing of it runs
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.State == nodeapi.StateStopped { // told of, but not removed
		close(b.stopped)
		n.wg.Go(func() { n.release(b) })
		return
	}
	n.mu.Lock()
	n.live++
	n.mu.Unlock()
	stop := b.rec.Stop
	n.adopt(b)
	switch inst, ok := b.inst.(pausable); {
	case b.rec.Sandbox.State == nodeapi.StatePaused && b.rec.Pause.Goal == nodeapi.DepthCheckpointed && n.engine != nil:
		n.wg.Go(func() {
			b.turn.Lock()
			defer b.turn.Unlock()
			n.checkpointLater(b, nodeapi.PauseRequest{})
		})
	case b.rec.Sandbox.State == nodeapi.StatePaused && b.rec.Pause.Goal == nodeapi.DepthFiles:
		n.wg.Go(func() {
			b.turn.Lock()
			defer b.turn.Unlock()
			if sb := b.view(); sb.State != nodeapi.StatePaused || sb.Pause.Depth != nodeapi.DepthFrozen {
				return
			}
			if err := n.keepFiles(b); err != nil {
				n.log.Warn("sandbox stays frozen", "sandbox", b.id, "error", err)
			}
		})
	case b.rec.Sandbox.State == nodeapi.StatePaused:
	case b.rec.Waking && ok:
		env := environ(b.rec.Env) // of a copy it is not the original's
		b.turn.Lock()             // which nobody else can have yet: a pause that is asked for as soon as one can ask comes after it
		n.wg.Go(func() {
			defer b.turn.Unlock()
			n.wake(n.ctx, b, inst, env)
		})
	default:
		n.logAgain(b, b.inst.Guest())
	}
	if stop != nil {
		n.deadlines.set(b.id, time.Time{})
		inst := b.inst
		n.wg.Go(func() { n.end(inst, *stop) })
	}
}

// giveUp ends the record of a sandbox that the runtime could not open. The sweep has removed, or will remove, what is
// left of it.
func (n *Node) giveUp(b *box, cause error) {
	b.unpublish()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &b.rec.Sandbox
	if s.State != nodeapi.StateStopped {
		s.State, s.PID, s.EndedAt = nodeapi.StateStopped, 0, time.Now().UTC().Round(0)
		s.Exit = &nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 137, Signal: 9, Message: "it could not be found again: " + cause.Error()}
	}
	b.rec.Released = true
	if err := n.records.put(&b.rec); err != nil {
		n.log.Error("end of sandbox is not recorded", "sandbox", b.id, "error", err)
	}
	if b.lease != nil {
		b.lease.Release()
	}
	if n.unswept.Load() {
		n.needSweep(b.rec.IDBase)
	} else {
		n.ids.free(b.rec.IDBase)
	}
	close(b.stopped)
	close(b.released)
}

// needSweep asks for a sweep, after which the range of ids at base is free.
func (n *Node) needSweep(base uint32) {
	n.sweepMu.Lock()
	defer n.sweepMu.Unlock()
	n.orphaned = append(n.orphaned, base)
	n.unswept.Store(true)
}

// sweep removes what belongs to no sandbox.
func (n *Node) sweep() {
	n.sweepWith(func(id api.SandboxID) bool {
		b, err := n.box(id)
		if err != nil {
			return false
		}
		select {
		case <-b.released:
			return false
		default:
			return true
		}
	})
}

// sweepWith removes everything that keep refuses. Where that does not succeed the node makes no sandboxes until it does:
// a process that is left could have the ids of a new one.
func (n *Node) sweepWith(keep func(api.SandboxID) bool) {
	n.sweepMu.Lock()
	defer n.sweepMu.Unlock()
	ctx, cancel := context.WithTimeout(n.ctx, sweepTimeout)
	defer cancel()
	removed, err := n.runtime.Sweep(ctx, keep)
	if len(removed) > 0 {
		n.log.Warn("removed leftovers", "sandboxes", removed)
	}
	if err != nil {
		n.log.Error("leftovers cannot be removed yet", "error", err)
		n.unswept.Store(true)
		return
	}
	for _, base := range n.orphaned {
		n.ids.free(base)
	}
	n.orphaned = nil
	n.unswept.Store(false)
}

// keepHouse does until ctx ends what is to be done from time to time.
func (n *Node) keepHouse(ctx context.Context) {
	t := time.NewTicker(houseInterval)
	defer t.Stop()
	for {
		if n.unswept.Load() {
			n.sweep()
		}
		n.prune(time.Now())
		if gone, err := n.templates.Prune(ctx, pruneAge); err != nil {
			n.log.Error("templates without a name cannot be removed", "error", err)
		} else if len(gone) > 0 {
			n.log.Info("removed templates without a name", "digests", gone)
		}
		if err := n.books.Sweep(logKeep, logBooks, func(id api.SandboxID) bool { _, err := n.box(id); return err == nil }); err != nil {
			n.log.Error("old logbooks cannot be removed", "error", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
