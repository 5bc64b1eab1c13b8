package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

const (
	// dumpTimeout bounds a dump: a GiB of memory takes seconds.
	dumpTimeout    = 10 * time.Minute
	restoreTimeout = 5 * time.Minute
	// criuWait bounds how long a new daemon waits for the CRIU of one that was killed.
	criuWait = 30 * time.Second
	// engineTimeout bounds the look for CRIU, which is started twice.
	engineTimeout = 30 * time.Second

	checkpointTemp = "new"     // being made
	checkpointDone = "current" // whole
	criuFile       = "criu"    // which CRIU works, beside the two
)

// checkpointDir is where a sandbox's checkpoint is.
func (n *Node) checkpointDir(id api.SandboxID) string {
	return filepath.Join(n.path("checkpoints"), string(id))
}

// checkpointLater checkpoints a frozen sandbox in the background. b.turn is held.
func (n *Node) checkpointLater(b *box, req nodeapi.PauseRequest) {
	ctx, cancel := context.WithCancel(n.ctx)
	b.mu.Lock()
	b.giveUp = cancel
	b.rec.Pause.Goal = nodeapi.DepthCheckpointed
	p := *b.rec.Sandbox.Pause
	p.Checkpointing, p.Failure = true, ""
	b.rec.Sandbox.Pause = &p
	b.mu.Unlock()
	n.wg.Go(func() {
		defer cancel()
		b.turn.Lock()
		defer b.turn.Unlock()
		if sb := b.view(); ctx.Err() != nil || sb.State != nodeapi.StatePaused || sb.Pause.Depth != nodeapi.DepthFrozen {
			return
		}
		if err := n.checkpoint(ctx, b); err != nil && n.ctx.Err() == nil {
			n.log.Warn("sandbox stays frozen", "sandbox", b.id, "error", err)
			return
		}
		if req.Store == "" {
			return
		}
		if err := n.storePaused(ctx, b, req); err != nil && n.ctx.Err() == nil {
			n.log.Warn("checkpoint stays on this node", "sandbox", b.id, "error", err)
		}
	})
}

// giveUpCheckpoint ends a checkpoint that is being made in the background.
func (b *box) giveUpCheckpoint() {
	b.mu.Lock()
	giveUp := b.giveUp
	b.giveUp = nil
	b.mu.Unlock()
	if giveUp != nil {
		giveUp()
	}
}

// checkpoint takes a frozen sandbox to disk and ends its processes. After an error it is frozen as before, and nothing is left of the
// attempt. b.turn is held.
func (n *Node) checkpoint(ctx context.Context, b *box) error {
	err := n.tryCheckpoint(ctx, b)
	if err == nil {
		return nil
	}
	err = errors.Join(err, os.RemoveAll(filepath.Join(n.checkpointDir(b.id), checkpointTemp)))
	if inst, ierr := b.pausable(); ierr == nil {
		// A CRIU that was killed has left them running.
		fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTimeout)
		err = errors.Join(err, inst.FreezeAgain(fctx))
		cancel()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Sandbox.State == nodeapi.StatePaused && b.rec.Sandbox.Pause.Depth == nodeapi.DepthFrozen {
		p := *b.rec.Sandbox.Pause
		p.Checkpointing, p.Failure = false, err.Error()
		b.rec.Sandbox.Pause = &p
		b.rec.Pause.Goal = nodeapi.DepthFrozen
		err = errors.Join(err, n.records.put(&b.rec))
		n.tell(b, nodeapi.EventPaused)
	}
	return err
}

func (n *Node) tryCheckpoint(ctx context.Context, b *box) error {
	inst, err := b.pausable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dumpTimeout)
	defer cancel()
	// CRIU would find zeros where memory is not there yet.
	if err := n.awaitPages(ctx, b); err != nil {
		return fmt.Errorf("checkpoint of %s: %w", b.id, err)
	}
	home := n.checkpointDir(b.id)
	temp, done := filepath.Join(home, checkpointTemp), filepath.Join(home, checkpointDone)
	if err := errors.Join(os.MkdirAll(home, 0o700), os.RemoveAll(temp), os.RemoveAll(done)); err != nil {
		return fmt.Errorf("checkpoint of %s: %w", b.id, err)
	}
	criu, err := n.engine.StartDump(ctx, n.noteCRIU(home))
	if err != nil {
		return fmt.Errorf("checkpoint of %s: %w", b.id, err)
	}
	d, err := inst.Checkpoint(ctx, criu, sandbox.CheckpointDir(temp), sandbox.CheckpointOptions{Sync: true})
	if err == nil && d.Again != nil {
		n.log.Warn("a checkpoint took a second try", "sandbox", b.id, "error", d.Again)
	}
	if err != nil {
		return err
	}
	failpoint.At("checkpoint.dumped")
	if err := inst.SyncLayer(temp); err != nil {
		return err
	}
	failpoint.At("checkpoint.synced")
	if err := os.Rename(temp, done); err != nil {
		return err
	}
	if err := syncDir(home); err != nil {
		return err
	}
	failpoint.At("checkpoint.renamed")
	if err := n.leaveMemory(b, inst, pauseRecord{Goal: nodeapi.DepthCheckpointed, Dump: &d}, d.Stats.Bytes); err != nil {
		return err
	}
	n.note(b, logbook.Info, "sandbox checkpointed", map[string]string{"bytes": strconv.FormatInt(d.Stats.Bytes, 10)})
	return nil
}

// leaveMemory records that a frozen sandbox is on disk as deep as rec says, and ends its processes. b.turn is held.
func (n *Node) leaveMemory(b *box, inst pausable, rec pauseRecord, bytes int64) error {
	b.mu.Lock()
	if b.rec.Sandbox.State != nodeapi.StatePaused {
		defer b.mu.Unlock()
		return notRunning(b.rec.Sandbox) // it is being stopped
	}
	old := b.rec
	b.rec.Pause = &rec
	p := *b.rec.Sandbox.Pause
	p.Depth, p.Checkpointing, p.Failure, p.Bytes = rec.Goal, false, "", bytes
	b.rec.Sandbox.Pause = &p
	b.rec.Sandbox.PID = 0
	b.rec.Slot = nil // a restore gets another: every sandbox has the same address inside
	if err := n.records.put(&b.rec); err != nil {
		b.rec = old
		b.mu.Unlock()
		return err
	}
	b.inst = nil // whoever watches it sees that its end is none of the sandbox
	b.mu.Unlock()
	n.sync.flush()
	failpoint.At("checkpoint.recorded")
	// From here on what is on disk is the sandbox. Its processes, which have not run since, must go.
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
		ectx, cancel := context.WithTimeout(n.ctx, undoTimeout)
		err := inst.End(ectx)
		cancel()
		if err == nil || n.ctx.Err() != nil {
			break
		}
		n.log.Error("processes of a paused sandbox cannot be ended yet", "sandbox", b.id, "error", err)
		sleep(n.ctx, wait)
	}
	failpoint.At("checkpoint.ended")
	if s := n.detachSlot(b); s != nil {
		n.wg.Go(func() { n.returnSlot(b, s) })
	}
	n.mu.Lock()
	n.live--
	n.mu.Unlock()
	b.mu.Lock()
	n.tell(b, nodeapi.EventPaused)
	b.mu.Unlock()
	return nil
}

// restore brings a checkpointed sandbox back. Until its record says that it runs, nothing of it has run. b.turn is held.
func (n *Node) restore(ctx context.Context, b *box, deadline time.Time) error {
	rt, ok := n.runtime.(restorer)
	if !ok || n.engine == nil {
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "checkpoints: %v", n.noEngine)
	}
	if b.lease == nil {
		return api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "sandbox %s: this node does not have its template %s any more", b.id, b.view().Digest)
	}
	stored, tenant := b.stored()
	inst, err := n.comeBack(ctx, b, deadline, true, func(ctx context.Context) (pausable, error) { return n.bringBack(ctx, rt, b) })
	if err != nil {
		return err
	}
	server := pagesOf(inst)
	if server != nil {
		n.page(b, inst, server, nil)
	}
	failpoint.At("restore.recorded")
	n.wake(context.WithoutCancel(ctx), b, inst, nil)
	failpoint.At("restore.woken")
	b.mu.Lock()
	n.tell(b, nodeapi.EventResumed)
	b.mu.Unlock()
	n.note(b, logbook.Info, "sandbox restored", nil)
	n.forgetStored(tenant, stored)
	n.logAgain(b, inst.Guest())
	if server == nil {
		n.removeImages(b)
	}
	return nil
}

// stored returns the copy of a paused sandbox in the snapshot store, and whose it is.
func (b *box) stored() (api.SnapshotID, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Pause == nil || b.rec.Sandbox.Pause == nil {
		return "", ""
	}
	return b.rec.Sandbox.Pause.Snapshot, b.rec.Pause.Tenant
}

// comeBack has a sandbox of which nothing runs made again, and records that it runs. On error it is paused as before. b.turn is held.
func (n *Node) comeBack(ctx context.Context, b *box, deadline time.Time, waking bool, again func(context.Context) (pausable, error)) (pausable, error) {
	n.mu.Lock()
	if n.live >= n.cfg.MaxSandboxes {
		n.mu.Unlock()
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "this node runs %d sandboxes, its limit", n.cfg.MaxSandboxes)
	}
	n.live++
	n.mu.Unlock()
	failed := func(err error) error {
		n.loseSlot(b)
		n.mu.Lock()
		n.live--
		n.mu.Unlock()
		return err
	}
	inst, err := again(ctx)
	if err != nil {
		return nil, failed(err)
	}
	failpoint.At("restore.restored")
	b.mu.Lock()
	old := b.rec
	n.markRunning(b, deadline)
	b.rec.Waking = waking
	b.rec.Ref = inst.Ref()
	b.rec.Sandbox.PID = b.rec.Ref.PID
	if err := n.records.put(&b.rec); err != nil {
		b.rec = old
		b.mu.Unlock()
		return nil, failed(errors.Join(err, inst.End(context.WithoutCancel(ctx))))
	}
	b.inst = inst
	n.adopt(b)
	b.mu.Unlock()
	return inst, nil
}

// bringBack has the processes restored, frozen.
func (n *Node) bringBack(ctx context.Context, rt restorer, b *box) (pausable, error) {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	home := n.checkpointDir(b.id)
	b.mu.Lock()
	sb, rec := b.rec.Sandbox, b.rec
	b.mu.Unlock()
	inst, err := n.restored(ctx, rt, b, home, nil, sandbox.RestoreConfig{
		Config: sandbox.Config{
			ID: b.id, Lower: b.lease.Root, IDBase: rec.IDBase, Limits: sandbox.Limits(sb.Limits), QoS: sandbox.QoS(sb.QoS),
			Boot: guest.Boot{Hostname: sb.Hostname, Profile: sb.Profile},
		},
		Dir: sandbox.CheckpointDir(filepath.Join(home, checkpointDone)), Dump: *rec.Pause.Dump, Started: n.noteCRIU(home), Held: n.noteHeldCRIU(home),
		Network: n.adoptSlot(ctx, b, rec.Network),
	})
	if err != nil {
		return nil, err
	}
	p, ok := inst.(pausable)
	if !ok {
		return nil, fmt.Errorf("restored sandbox %s cannot be paused", b.id)
	}
	return p, nil
}

// wake lets a restored sandbox run and takes note of that. Where its PID 1 does not answer it runs all the same, as one whose PID 1
// hangs does; it cannot be checkpointed again before it has answered.
func (n *Node) wake(ctx context.Context, b *box, inst pausable, env []string) {
	if err := inst.Wake(ctx, env); err != nil {
		n.log.Error("restored sandbox does not answer", "sandbox", b.id, "error", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.Waking = false
	if b.rec.Sandbox.State != nodeapi.StateRunning {
		return // it has ended meanwhile
	}
	if err := n.records.put(&b.rec); err != nil {
		n.log.Error("resume is not recorded", "sandbox", b.id, "error", err)
	}
}

// sweepCheckpoints removes what belongs to no sandbox.
func (n *Node) sweepCheckpoints() {
	entries, err := os.ReadDir(n.path("checkpoints"))
	if err != nil {
		n.log.Error("checkpoints cannot be swept", "error", err)
		return
	}
	for _, e := range entries {
		if _, ok := n.boxes[api.SandboxID(e.Name())]; ok {
			continue
		}
		p := filepath.Join(n.path("checkpoints"), e.Name())
		if err := errors.Join(n.awaitCRIU(p, false), n.clearPages(p), os.RemoveAll(p)); err != nil {
			n.log.Error("checkpoint of no sandbox stays", "path", p, "error", err)
		}
	}
}

// criuNote says which process works for a sandbox's checkpoint.
type criuNote struct {
	Version int    `json:"version"`
	PID     int    `json:"pid"`
	Start   string `json:"start"` // field 22 of its stat
	// Held tells that it waits for its daemon for ever: what it restores has to be killed, and then it.
	Held bool `json:"held,omitempty"`
}

// noteCRIU returns what writes down which CRIU works in home, for a daemon that comes after this one.
func (n *Node) noteCRIU(home string) func(*os.Process) error { return noteOf(home, false) }

// noteHeldCRIU is noteCRIU for when it does not end with this daemon any more.
func (n *Node) noteHeldCRIU(home string) func(*os.Process) error { return noteOf(home, true) }

func noteOf(home string, held bool) func(*os.Process) error {
	return func(p *os.Process) error {
		s, err := procstat.Of(p.Pid)
		if err != nil {
			return err
		}
		return checkpoint.WriteNote(filepath.Join(home, criuFile), criuNote{Version: 1, PID: p.Pid, Start: s.Started(), Held: held})
	}
}

// awaitCRIU returns when the CRIU that an earlier daemon started for a sandbox has ended; one that takes too long is killed, and at once one that is held in a
// restore that nobody needs: nothing of what it has restored is there any more.
func (n *Node) awaitCRIU(home string, needed bool) error {
	b, err := os.ReadFile(filepath.Join(home, criuFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var note criuNote
	if err == nil {
		err = json.Unmarshal(b, &note)
	}
	if err != nil || note.Version != 1 {
		return nil //nolint:nilerr // cut off: it was killed with its daemon, before it began
	}
	fd, err := unix.PidfdOpen(note.PID, 0)
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer unix.Close(fd)
	if s, err := procstat.Of(note.PID); err != nil || s.Started() != note.Start {
		return nil //nolint:nilerr // another process has its number
	}
	waits := []time.Duration{criuWait, freezeTimeout}
	if note.Held && !needed {
		waits[0] = 0
	}
	for _, wait := range waits {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if got, err := unix.Poll(p, int(wait.Milliseconds())); err == nil && got == 1 {
			return nil
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			return nil //nolint:nilerr // it has ended
		}
	}
	return fmt.Errorf("criu %d does not end", note.PID)
}

// takeOverPause goes on with the pause of an earlier daemon, or with what it left half done. It runs before anything else speaks to
// the sandbox.
func (n *Node) takeOverPause(b *box) error {
	home := n.checkpointDir(b.id)
	ctx, cancel := context.WithTimeout(n.ctx, undoTimeout)
	defer cancel()
	rec := &b.rec
	onDisk := rec.Sandbox.State == nodeapi.StatePaused && rec.Sandbox.Pause.Depth != nodeapi.DepthFrozen
	inst, ok := b.inst.(pausable)
	if onDisk && ok {
		// Whatever runs was on disk before its end, or came back and was never told of.
		if err := inst.End(ctx); err != nil {
			return err
		}
	}
	if err := n.awaitCRIU(home, !onDisk); err != nil {
		return err
	}
	paging := false
	if !onDisk {
		var err error
		if paging, err = n.takeOverPages(b); err != nil {
			return err
		}
	}
	if rec.Pause == nil {
		select {
		case <-b.inst.Done():
			return nil // takeOver tells of its end
		default:
		}
	}
	forget := func() error {
		if paging { // its images are still needed, and go with the last page
			return nil
		}
		return os.RemoveAll(home)
	}
	if !ok {
		return nil
	}
	switch {
	case onDisk:
		b.inst = nil
		return errors.Join(n.clearPages(home), os.RemoveAll(filepath.Join(home, checkpointTemp)))
	case rec.Sandbox.State == nodeapi.StatePaused:
		select {
		case <-inst.Done():
			return nil // takeOver tells of its end
		default:
		}
		return errors.Join(inst.FreezeAgain(ctx), forget())
	case rec.Sandbox.State == nodeapi.StateRunning:
		return errors.Join(inst.Thaw(ctx), forget())
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openEngine looks for CRIU. A node without one pauses by freezing only.
func (n *Node) openEngine() {
	ctx, cancel := context.WithTimeout(n.ctx, engineTimeout)
	defer cancel()
	n.engine, n.noEngine = checkpoint.Open(ctx, n.cfg.CRIUPath)
	switch {
	case n.noEngine != nil:
		n.engine = nil
		if n.cfg.CRIUPath != "" {
			n.log.Warn("no checkpoints", "error", n.noEngine)
		}
	case n.engine.Slow() != nil:
		n.log.Warn("checkpoints are slower than they could be", "error", n.engine.Slow())
	}
	if n.engine != nil {
		n.engine.StandBy()
		n.closers = append(n.closers, func() error { n.engine.Close(); return nil })
	}
}
