package node

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

const (
	maxStopTimeout = time.Hour
	// killTimeout bounds one attempt to kill; a process in an uninterruptible sleep can outlive it, and is tried again.
	killTimeout = 10 * time.Second
	// pumpGrace bounds how long the end of a sandbox waits for its last output to reach the log targets.
	pumpGrace = 2 * time.Second
)

// Stop ends a sandbox and returns it when it has stopped. When ctx ends earlier, or the kernel does not let go of a process, the stop goes on.
func (n *Node) Stop(ctx context.Context, id api.SandboxID, req nodeapi.StopRequest) (nodeapi.Sandbox, error) {
	if req.Signal == 0 {
		req.Signal = int(unix.SIGTERM)
	}
	if err := checkSignal("signal", req.Signal); err != nil {
		return nodeapi.Sandbox{}, err
	}
	if req.Timeout < 0 || req.Timeout > maxStopTimeout {
		return nodeapi.Sandbox{}, invalid("timeout: %d ns is not between 0 and %d", req.Timeout, maxStopTimeout)
	}
	set(&req.Reason, nodeapi.ExitStopped)
	if err := checkWord("reason", req.Reason, maxOwnerWord); err != nil {
		return nodeapi.Sandbox{}, err
	}
	b, err := n.box(id)
	if err != nil {
		return nodeapi.Sandbox{}, err
	}
	select {
	case <-b.created:
	case <-ctx.Done():
		return nodeapi.Sandbox{}, ctx.Err()
	}
	killAt := time.Now().Add(req.Timeout)
	if n.beginStop(b, stopIntent{Reason: req.Reason, Signal: req.Signal, KillAt: killAt.UTC().Round(0)}) {
		if err := n.awaitEnd(ctx, b, b.stopped, killAt); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	sb := b.view()
	if sb.State != nodeapi.StateStopped { // it never started
		return nodeapi.Sandbox{}, notFound(id)
	}
	return sb, nil
}

// beginStop sets the end of a sandbox going and reports whether there is one to wait for. The first reason given stays;
// a later stop may only be quicker.
func (n *Node) beginStop(b *box, intent stopIntent) bool {
	b.giveUpCheckpoint()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.rec.Sandbox.State == nodeapi.StatePaused {
		if b.inst == nil {
			n.wg.Go(func() { n.endCheckpointed(b, intent) })
			return true
		}
		intent.KillAt = time.Now().UTC().Round(0) // what stands still cannot be asked
		b.rec.Sandbox.Pause, b.rec.Pause = nil, nil
	}
	if b.err != nil || b.rec.Sandbox.State == nodeapi.StateStopped || b.inst == nil {
		return false
	}
	if b.rec.Stop == nil {
		stop := intent
		b.rec.Stop = &stop
		b.rec.Sandbox.State = nodeapi.StateStopping
		// Without a grace the end comes at once and writes its own record.
		if time.Until(intent.KillAt) > 0 && !b.deleting {
			if err := n.records.put(&b.rec); err != nil {
				n.log.Error("stop is not recorded", "sandbox", b.id, "error", err)
			}
		}
		sb := b.rec.Sandbox
		n.hub.publish(nodeapi.EventUpdated, b.id, &sb)
		n.deadlines.set(b.id, time.Time{})
	}
	inst := b.inst
	n.wg.Go(func() { n.end(inst, intent) })
	return true
}

// end asks the sandbox to end, waits, and kills it.
func (n *Node) end(inst instance, intent stopIntent) {
	if grace := time.Until(intent.KillAt); grace > 0 {
		ctx, cancel := context.WithTimeout(n.ctx, grace)
		// Its PID 1 could be stopped or broken; then only the clock counts.
		if err := inst.Guest().Shutdown(ctx, guest.ShutdownParams{Signal: intent.Signal, Grace: grace}); err != nil && ctx.Err() == nil {
			n.log.Debug("sandbox was not asked to end", "sandbox", inst.Ref().ID, "error", err)
		}
		select {
		case <-inst.Done():
		case <-ctx.Done():
		}
		cancel()
		// PID 1 kills at the same moment, and writes what became of the main process: let it.
		if waitFor(n.ctx, inst.Done(), 200*time.Millisecond) {
			return
		}
	}
	for n.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(n.ctx, killTimeout)
		err := inst.Kill(ctx)
		cancel()
		if err == nil || waitFor(n.ctx, inst.Done(), time.Second) {
			return
		}
		n.log.Error("sandbox cannot be killed yet", "sandbox", inst.Ref().ID, "error", err, "stuck", stuckText(stuckOf(inst)))
	}
}

// endCheckpointed ends a sandbox of which nothing runs.
func (n *Node) endCheckpointed(b *box, intent stopIntent) {
	b.turn.Lock()
	defer b.turn.Unlock()
	b.mu.Lock()
	if b.rec.Sandbox.State != nodeapi.StatePaused || b.inst != nil {
		running := b.inst != nil && b.rec.Sandbox.State != nodeapi.StateStopped
		b.mu.Unlock()
		if running {
			n.beginStop(b, intent) // it was resumed meanwhile
		}
		return
	}
	inst, err := n.runtime.Open(b.rec.Ref)
	if err != nil {
		b.mu.Unlock()
		n.log.Error("checkpointed sandbox cannot be ended", "sandbox", b.id, "error", err)
		return
	}
	sb := &b.rec.Sandbox
	sb.State, sb.Pause, b.rec.Pause = nodeapi.StateStopped, nil, nil
	sb.Exit = &nodeapi.Exit{Reason: intent.Reason, Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), Message: "it was paused"}
	sb.EndedAt = time.Now().UTC().Round(0)
	b.inst = inst
	if !b.deleting {
		if err := n.records.put(&b.rec); err != nil {
			n.log.Error("end of sandbox is not recorded", "sandbox", b.id, "error", err)
		}
	}
	n.tell(b, nodeapi.EventStopped)
	exit := sb.Exit
	b.mu.Unlock()
	close(b.stopped)
	n.noteEnd(b, exit)
	n.release(b)
}

// expire ends a sandbox whose deadline has come.
func (n *Node) expire(id api.SandboxID) {
	b, err := n.box(id)
	switch {
	case err != nil:
	case b.view().OnDeadline == nodeapi.DeadlinePause:
		n.wg.Go(func() { n.pauseDue(b, "") })
	case b.view().OnDeadline == nodeapi.DeadlinePauseFiles:
		n.wg.Go(func() { n.pauseDue(b, nodeapi.DepthFiles) })
	default:
		n.beginStop(b, stopIntent{Reason: nodeapi.ExitDeadline, Signal: int(unix.SIGTERM), KillAt: time.Now().Add(n.cfg.DeadlineGrace).UTC().Round(0)})
	}
}

// pauseDue pauses a sandbox whose deadline has passed: checkpointed where that can be and no depth is given, else frozen. One that can be neither is ended,
// since nobody may have it beyond its time.
func (n *Node) pauseDue(b *box, depth nodeapi.Depth) {
	_, err := n.Pause(n.ctx, b.id, nodeapi.PauseRequest{Depth: depth})
	if err != nil && depth == "" && b.view().State == nodeapi.StateRunning {
		n.log.Debug("sandbox is paused without a checkpoint", "sandbox", b.id, "reason", err)
		_, err = n.Pause(n.ctx, b.id, nodeapi.PauseRequest{Depth: nodeapi.DepthFrozen})
	}
	if err == nil || n.ctx.Err() != nil || b.view().State != nodeapi.StateRunning {
		return
	}
	n.log.Error("sandbox cannot be paused at its deadline and is ended", "sandbox", b.id, "error", err)
	n.beginStop(b, stopIntent{Reason: nodeapi.ExitDeadline, Signal: int(unix.SIGTERM), KillAt: time.Now().Add(n.cfg.DeadlineGrace).UTC().Round(0)})
}

// watch waits for the end of a sandbox, tells of it, and removes what is left of it.
func (n *Node) watch(b *box, inst instance, pumped <-chan struct{}) {
	select {
	case <-inst.Done():
	case <-n.ctx.Done(): // it goes on without this daemon
		return
	}
	if pumped != nil {
		select {
		case <-pumped: // soon: it bounds itself by pumpGrace
		case <-n.ctx.Done():
			return
		}
	}
	exit := inst.Exit()
	b.mu.Lock()
	if b.inst != inst { // its checkpoint lives on
		b.mu.Unlock()
		return
	}
	b.rec.Sandbox.Pause = nil
	sb := &b.rec.Sandbox
	sb.State, sb.PID = nodeapi.StateStopped, 0
	sb.Exit, sb.EndedAt = exitOf(exit, b.rec.Stop), endOf(exit)
	if !b.deleting {
		if err := n.records.put(&b.rec); err != nil {
			n.log.Error("end of sandbox is not recorded", "sandbox", b.id, "error", err)
		}
	}
	stopped := *sb
	n.hub.publish(nodeapi.EventStopped, b.id, &stopped)
	n.deadlines.set(b.id, time.Time{})
	b.mu.Unlock()
	n.mu.Lock()
	n.live--
	n.mu.Unlock()
	close(b.stopped)
	n.noteEnd(b, stopped.Exit)
	n.log.Info("sandbox stopped", "sandbox", b.id, "reason", stopped.Exit.Reason, "code", stopped.Exit.Code, "oom", stopped.Exit.OOM)
	n.release(b)
}

// release removes what is left of an ended sandbox on the machine, however long it takes, and gives its ids back.
func (n *Node) release(b *box) {
	b.unpublish()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 30*time.Second) {
		ctx, cancel := context.WithTimeout(n.ctx, undoTimeout)
		err := b.inst.Release(ctx)
		cancel()
		if err == nil {
			break
		}
		if n.ctx.Err() != nil {
			return // the next daemon goes on
		}
		n.log.Error("sandbox cannot be removed yet", "sandbox", b.id, "error", err)
		sleep(n.ctx, wait)
	}
	n.giveSlot(b)
	n.endPages(b)
	if err := os.RemoveAll(n.checkpointDir(b.id)); err != nil {
		n.log.Warn("checkpoint stays", "sandbox", b.id, "error", err)
	}
	n.ids.free(b.rec.IDBase)
	if b.lease != nil {
		b.lease.Release()
	}
	n.forgetOffsets(b.id)
	b.mu.Lock()
	b.rec.Released = true
	if !b.deleting {
		if err := n.records.put(&b.rec); err != nil {
			n.log.Error("removal of sandbox is not recorded", "sandbox", b.id, "error", err)
		}
	}
	b.mu.Unlock()
	close(b.released)
}

// Delete ends a sandbox at once if it still runs, and returns when nothing of it is left, its record included. When ctx ends earlier, or the kernel does not let go of a
// process, the removal goes on.
func (n *Node) Delete(ctx context.Context, id api.SandboxID) error {
	b, err := n.box(id)
	if err != nil {
		return err
	}
	b.mu.Lock()
	first := !b.deleting
	b.deleting = true
	abort := b.abort
	b.mu.Unlock()
	if first {
		abort()
		n.wg.Go(func() { n.remove(b) })
	}
	return n.awaitEnd(ctx, b, b.removed, time.Now())
}

func (n *Node) remove(b *box) {
	select {
	case <-b.created:
	case <-n.ctx.Done():
		return
	}
	if b.err != nil {
		return // fail has removed it
	}
	n.beginStop(b, stopIntent{Reason: nodeapi.ExitStopped, KillAt: time.Now().UTC().Round(0)})
	select {
	case <-b.released:
	case <-n.ctx.Done():
		return
	}
	b.mu.Lock()
	if err := markEnded(b.rec.Sandbox.Owner, b.id); err != nil {
		n.log.Error("a sandbox that is gone could be begun again", "sandbox", b.id, "error", err)
	}
	if err := n.records.remove(b.id); err != nil {
		n.log.Error("record stays", "sandbox", b.id, "error", err)
	}
	b.mu.Unlock()
	n.forget(b)
	n.hub.publish(nodeapi.EventRemoved, b.id, nil)
	close(b.removed)
}

// exitOf says how a sandbox ended.
func exitOf(e sandbox.Exit, stop *stopIntent) *nodeapi.Exit {
	// Out of memory ends all of it. On cgroup v1 PID 1 may still have had the time to tell of its main process's end.
	oom := e.OOM && stop == nil && e.Record != nil && e.Record.Signal == int(unix.SIGKILL)
	switch {
	case e.Record != nil && !oom:
		x := &nodeapi.Exit{Reason: nodeapi.ExitMainExited, Code: e.Record.Code, Signal: e.Record.Signal, OOM: e.OOM, PIDs: e.PIDLimit, Disk: e.DiskFull}
		if e.Record.Reason == guest.ReasonShutdown {
			x.Reason = nodeapi.ExitStopped
			if stop != nil {
				x.Reason = stop.Reason
			}
		}
		return x
	case e.Rebooted:
		return &nodeapi.Exit{Reason: nodeapi.ExitLost, Code: -1, Message: "the machine restarted under it"}
	}
	x := &nodeapi.Exit{Reason: nodeapi.ExitKilled, Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), OOM: e.OOM, PIDs: e.PIDLimit, Disk: e.DiskFull}
	if e.Waited && !oom { // of a PID 1 that has told of the kill, its own end says less
		x.Code, x.Signal = e.Code, e.Signal
		if e.Signal != 0 {
			x.Code = 128 + e.Signal
		}
	}
	switch {
	case stop != nil:
		x.Reason = stop.Reason
	case e.OOM:
		x.Message = "the kernel ended it for lack of memory"
	default:
		x.Message = "its PID 1 was killed"
	}
	return x
}

func endOf(e sandbox.Exit) time.Time {
	if e.Record != nil {
		if t, err := time.Parse(time.RFC3339Nano, e.Record.EndedAt); err == nil {
			return t.UTC()
		}
	}
	return time.Now().UTC().Round(0)
}

// waitFor waits until ch is closed and reports whether it was before ctx ended or d passed.
func waitFor(ctx context.Context, ch <-chan struct{}, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}
