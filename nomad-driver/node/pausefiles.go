package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// keepFiles ends the processes of a frozen sandbox, or forgets those of a checkpointed one: its files, made durable, are what is left
// of it. On error it is paused as before. b.turn is held.
func (n *Node) keepFiles(b *box) error {
	if b.view().Pause.Depth == nodeapi.DepthFrozen {
		inst, err := b.pausable()
		if err != nil {
			return err
		}
		if err := inst.SyncLayer(); err != nil {
			return err
		}
		failpoint.At("files.synced")
		if err := n.leaveMemory(b, inst, pauseRecord{Goal: nodeapi.DepthFiles}, 0); err != nil {
			return err
		}
		n.note(b, logbook.Info, "sandbox paused: its files are kept", nil)
		return nil
	}
	stored, tenant := b.stored()
	b.mu.Lock()
	old := b.rec
	b.rec.Pause = &pauseRecord{Goal: nodeapi.DepthFiles}
	p := *b.rec.Sandbox.Pause
	p.Depth, p.Bytes, p.Snapshot = nodeapi.DepthFiles, 0, ""
	b.rec.Sandbox.Pause = &p
	err := n.records.put(&b.rec)
	if err != nil {
		b.rec = old
	} else {
		n.tell(b, nodeapi.EventPaused)
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	n.forgetStored(tenant, stored)
	if err := os.RemoveAll(n.checkpointDir(b.id)); err != nil {
		n.log.Warn("old checkpoint stays", "sandbox", b.id, "error", err)
	}
	return nil
}

// boot starts a paused sandbox anew from its files, with the id and all else that it was made with. b.turn is held.
func (n *Node) boot(ctx context.Context, b *box, deadline time.Time) error {
	if b.lease == nil {
		return api.Errorf(http.StatusConflict, nodeapi.CodeIncompatible, "sandbox %s: this node does not have its template %s any more", b.id, b.view().Digest)
	}
	if b.view().Main != 0 {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s lives as long as its own command: it cannot be booted from its files", b.id)
	}
	if err := holdsNothing(b.view()); err != nil {
		return err
	}
	if b.view().Pause.Depth == nodeapi.DepthFrozen {
		if err := n.keepFiles(b); err != nil {
			return err
		}
	}
	stored, tenant := b.stored()
	b.mu.Lock()
	sb, rec := b.rec.Sandbox, b.rec
	b.mu.Unlock()
	cfg := n.sandboxConfig(b, nodeapi.CreateRequest{
		Hostname: sb.Hostname, Env: rec.Env, Cwd: rec.Cwd, Profile: sb.Profile, QoS: sb.QoS, Limits: sb.Limits,
	})
	cfg.Kept = true
	inst, err := n.comeBack(ctx, b, deadline, false, func(ctx context.Context) (pausable, error) {
		inst, err := n.create(ctx, b, cfg, rec.Network)
		if err != nil {
			return nil, err
		}
		p, ok := inst.(pausable)
		if !ok {
			return nil, errors.Join(fmt.Errorf("booted sandbox %s cannot be paused", b.id), inst.Kill(ctx))
		}
		return p, nil
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	n.prestart(b, inst.Guest(), b.lease.Root)
	n.tell(b, nodeapi.EventResumed)
	b.mu.Unlock()
	n.note(b, logbook.Info, "sandbox booted from its files", nil)
	n.forgetStored(tenant, stored)
	if err := os.RemoveAll(n.checkpointDir(b.id)); err != nil {
		n.log.Warn("old checkpoint stays", "sandbox", b.id, "error", err)
	}
	return nil
}
