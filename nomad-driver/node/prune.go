package node

import (
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// prune removes records of stopped sandboxes: those whose owner will not ask for them any more, and of the others, where nothing says
// that somebody still may, those that are too old or too many.
func (n *Node) prune(now time.Time) {
	var stopped []nodeapi.Sandbox
	for _, sb := range n.List() {
		if sb.State == nodeapi.StateStopped {
			stopped = append(stopped, sb)
		}
	}
	slices.SortFunc(stopped, func(a, b nodeapi.Sandbox) int { return b.EndedAt.Compare(a.EndedAt) }) // newest first
	for i, sb := range stopped {
		switch ownerAsks(sb.Owner.Folder) {
		case asksNever:
			n.log.Info("record of a sandbox is removed: its owner has forgotten it", "sandbox", sb.ID, "alloc_id", sb.Owner.AllocID)
		case mayAsk:
			continue
		case nobodyKnows:
			if i < n.cfg.KeepCount && now.Sub(sb.EndedAt) < n.cfg.KeepStopped {
				continue
			}
		}
		b, err := n.box(sb.ID)
		if err != nil {
			continue
		}
		b.mu.Lock()
		first := !b.deleting
		b.deleting = true
		b.mu.Unlock()
		if first {
			n.wg.Go(func() { n.remove(b) })
		}
	}
}
