package node

import (
	"context"
	"strconv"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// quotaLook is how often quotas of bytes are looked at, to tell of those that are used up. The kernel holds to them by itself.
const quotaLook = time.Second

// watchQuotas tells of quotas that are used up, in the logbooks of their sandboxes, until ctx ends.
func (n *Node) watchQuotas(ctx context.Context) {
	if n.network == nil {
		return
	}
	t := time.NewTicker(quotaLook)
	defer t.Stop()
	told := map[*box]uint64{} // the limit that was told of as used up
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		n.mu.RLock()
		var boxes []*box
		for _, b := range n.boxes {
			boxes = append(boxes, b)
		}
		n.mu.RUnlock()
		seen := map[*box]uint64{}
		for _, b := range boxes {
			if limit := n.quotaUsedUp(b); limit > 0 {
				seen[b] = limit
				if told[b] != limit {
					n.note(b, logbook.Warn, "network quota is used up: nothing passes any more", map[string]string{"quota_bytes": strconv.FormatUint(limit, 10)})
				}
			}
		}
		told = seen
	}
}

// quotaUsedUp returns a sandbox's quota where it is used up, else 0.
func (n *Node) quotaUsedUp(b *box) uint64 {
	b.networking.Lock() // the slot is not given to somebody else meanwhile
	defer b.networking.Unlock()
	b.mu.Lock()
	s, want := b.slot, b.rec.Network
	b.mu.Unlock()
	if s == nil || want == nil || want.Shape == nil || want.Shape.Quota == 0 {
		return 0
	}
	limit, used, err := n.network.Quota(s)
	if err != nil {
		n.log.Warn("network quota cannot be read", "sandbox", b.id, "error", err)
		return 0
	}
	if used < limit {
		return 0
	}
	return limit
}

// keepUsed notes how much of its quota a sandbox has used whose link goes, for its next one. b.networking is held.
func (n *Node) keepUsed(b *box, s *network.Slot) {
	limit, used, err := n.network.Quota(s)
	if err != nil {
		n.log.Warn("network quota cannot be read: the next link begins anew", "sandbox", b.id, "error", err)
	}
	if limit == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.Carried = used
	if b.rec.Released {
		return
	}
	if err := n.records.put(&b.rec); err != nil {
		n.log.Warn("what a sandbox has used of its network quota is not recorded", "sandbox", b.id, "error", err)
	}
}

// quotaOf says what a slot may carry and has carried; nil where it has no quota.
func (n *Node) quotaOf(s *network.Slot) (*nodeapi.NetworkQuota, error) {
	limit, used, err := n.network.Quota(s)
	if err != nil || limit == 0 {
		return nil, err
	}
	return &nodeapi.NetworkQuota{Limit: limit, Used: used, UsedUp: used >= limit}, nil
}
