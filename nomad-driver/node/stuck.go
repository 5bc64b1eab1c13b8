package node

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// No signal ends a thread that waits in the kernel for a disk, or for a file system that somebody has frozen. Who stops or deletes a sandbox with one is told of it
// by name within a second, and the end goes on: until the thread is gone its group, mounts and id range stay as they are.
const (
	stuckFirst = 300 * time.Millisecond // from the kill to the first look
	stuckNext  = 500 * time.Millisecond // between looks; a thread that has run between them is on its way
	stuckNames = 5                      // in one message
)

// wedgeable is an instance that tells of its threads that no signal ends, as *sandbox.Sandbox is.
type wedgeable interface {
	instance
	Stuck() ([]sandbox.Stuck, error)
}

// awaitEnd waits for ended, which is one of the box's channels. Where threads are stuck after the kill, which comes at killAt, it returns an error that names them.
func (n *Node) awaitEnd(ctx context.Context, b *box, ended <-chan struct{}, killAt time.Time) error {
	t := time.NewTimer(time.Until(killAt) + stuckFirst)
	defer t.Stop()
	var before []sandbox.Stuck
	for {
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return ctx.Err() // the end goes on
		case <-n.ctx.Done():
			return n.ctx.Err()
		case <-t.C:
		}
		now := b.stuck()
		if still := sandbox.StillStuck(before, now); len(still) > 0 {
			n.recordEnd(b)
			return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
				"sandbox %s is killed, but the kernel does not let go of %s: it is removed as soon as that happens", b.id, stuckText(still))
		}
		before = now
		t.Reset(stuckNext)
	}
}

// recordEnd makes the end of a sandbox known to the next daemon: one that is quick is not written down, and this one is not.
func (n *Node) recordEnd(b *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rec.Stop == nil || b.rec.Released || b.rec.Deleting && b.deleting {
		return // it has ended, or is recorded
	}
	b.rec.Deleting = b.deleting
	if err := n.records.put(&b.rec); err != nil {
		n.log.Error("stop is not recorded", "sandbox", b.id, "error", err)
	}
}

// stuck lists the threads of a box that no signal ends.
func (b *box) stuck() []sandbox.Stuck {
	b.mu.Lock()
	inst := b.inst
	b.mu.Unlock()
	return stuckOf(inst)
}

func stuckOf(inst instance) []sandbox.Stuck {
	w, ok := inst.(wedgeable)
	if !ok {
		return nil
	}
	list, err := w.Stuck()
	if err != nil {
		return nil // its group goes
	}
	return list
}

func stuckText(list []sandbox.Stuck) string {
	var names []string
	for i, s := range list {
		if i == stuckNames {
			names = append(names, "and others")
			break
		}
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}
