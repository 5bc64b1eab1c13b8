package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// The time of a key's last use is told to the state in batches, and each key's at most once a usePrecision.
const (
	usePrecision = 5 * time.Minute
	useEvery     = time.Minute

	// keptEnded is how long a key is shown after its end, so that people see why it is refused.
	keptEnded = 7 * 24 * time.Hour
)

// uses are the uses of keys that the state does not know yet. There is at most one for each key.
type uses struct {
	mu   sync.Mutex
	last map[string]time.Time
}

// note costs a comparison for a key whose last use is known.
func (u *uses) note(k state.Key, now time.Time) {
	if now.Sub(k.LastUsedAt) < usePrecision {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last[k.ID] = now
}

// take returns at most state.MaxBatch of them, and forgets them.
func (u *uses) take() []state.KeyUse {
	u.mu.Lock()
	defer u.mu.Unlock()
	var out []state.KeyUse
	for id, at := range u.last {
		if len(out) == state.MaxBatch {
			break
		}
		out = append(out, state.KeyUse{ID: id, At: at.UTC()})
		delete(u.last, id)
	}
	return out
}

func (u *uses) back(list []state.KeyUse) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, use := range list {
		if use.At.After(u.last[use.ID]) {
			u.last[use.ID] = use.At
		}
	}
}

// Flush writes down when keys were last used. What this server cannot write now it keeps.
func (s *Service) Flush(ctx context.Context) error {
	for list := s.uses.take(); len(list) > 0; list = s.uses.take() {
		if _, err := s.store.Apply(ctx, &state.KeysUsed{Uses: list}); err != nil {
			s.uses.back(list)
			if errors.Is(err, state.ErrNoLeader) {
				return nil // the uses that a leader sees are enough
			}
			return err
		}
	}
	return nil
}

// Purge forgets keys that have ended long ago.
func (s *Service) Purge(ctx context.Context) error {
	for {
		before := s.now().UTC().Add(-keptEnded)
		if old, err := s.store.KeysEnded(before); err != nil || !old {
			return err
		}
		if _, err := s.store.Apply(ctx, &state.KeysPurge{Before: before}); err != nil {
			return err
		}
	}
}

// Run flushes and purges until ctx ends.
func (s *Service) Run(ctx context.Context) {
	tick := time.NewTicker(useEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = s.Flush(ctx) // the next one tries again
			_ = s.Purge(ctx) // likewise
		}
	}
}
