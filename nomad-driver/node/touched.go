package node

import (
	"context"
	"errors"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
)

// touchedOf returns which memory of a snapshot was wanted first when it was restored before. Nil: that is not known.
func (n *Node) touchedOf(ctx context.Context, m *chunk.Manifest) *checkpoint.Touched {
	if n.engine == nil || n.engine.Lazy() != nil {
		return nil
	}
	b, err := n.snapshots.Note(ctx, m)
	if err == nil {
		var t *checkpoint.Touched
		if t, err = checkpoint.ParseTouched(b); err == nil {
			return t
		}
	}
	if !errors.Is(err, chunk.ErrNotFound) && ctx.Err() == nil {
		n.log.Warn("a snapshot's memory comes in no particular order", "snapshot", m.ID, "error", err)
	}
	return nil
}

// noteTouched notes which memory of a snapshot was wanted first, in the background. Where most of it is known already nothing is written: a hundred copies
// of one snapshot want the same.
func (n *Node) noteTouched(m *chunk.Manifest, t *checkpoint.Touched) {
	if len(t.Pages) == 0 {
		return
	}
	n.wg.Go(func() {
		n.noting.Lock() // one at a time: each adds to what the one before has written
		defer n.noting.Unlock()
		sum, added := n.touchedOf(n.ctx, m).Add(t)
		if added <= len(sum.Pages)/8 {
			return
		}
		b, err := sum.Encode()
		if err == nil {
			err = n.snapshots.PutNote(n.ctx, m, b)
		}
		if err != nil && n.ctx.Err() == nil {
			n.log.Warn("what a snapshot's copy has wanted first is not noted", "snapshot", m.ID, "error", err)
			return
		}
		n.log.Debug("noted what is wanted first", "snapshot", m.ID, "pages", len(sum.Pages), "new", added)
	})
}
