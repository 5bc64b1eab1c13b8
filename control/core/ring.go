package core

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
	"github.com/soulbox-dev/soulbox/control/state"
)

// sharedRing is a ring of keys in the state, which every server has in memory: a change counts on each as soon as it has applied it.
type sharedRing struct {
	state *state.Server
	name  string
}

var _ local.Store = sharedRing{}

// Load implements local.Store.
func (r sharedRing) Load() (string, uint64, error) { return r.state.Ring(r.name) }

// Save implements local.Store.
func (r sharedRing) Save(ctx context.Context, data string, revision uint64) error {
	_, err := r.state.Apply(ctx, &state.RingPut{Name: r.name, Data: data, IfIndex: revision})
	if errors.Is(err, state.ErrConflict) {
		return fmt.Errorf("%w: %w", local.ErrChanged, err)
	}
	return err
}

// Files of the rings of a server that is alone.
const (
	linkKeysFile     = "link-keys.json"
	snapshotKeysFile = "snapshot-keys.json"
	secretKeysFile   = "secret-keys.json"
)

// openRings opens the rings of keys that the configuration leaves to this server.
func (c *Core) openRings(cfg Config) (err error) {
	if c.LinkKeys, err = c.openRing(cfg, cfg.LinkKeys, "links", linkKeysFile); err != nil {
		return err
	}
	if c.SnapshotKeys, err = c.openRing(cfg, cfg.SnapshotKeys, "snapshots", snapshotKeysFile); err != nil {
		return err
	}
	c.secretKeys, err = c.openRing(cfg, cfg.SecretKeys, "secrets", secretKeysFile)
	return err
}

func (c *Core) openRing(cfg Config, given keys.Ring, name, file string) (keys.Ring, error) {
	if given != nil {
		return given, nil
	}
	if cfg.RaftAddr == "" { // nobody to share it with
		return local.OpenRing(filepath.Join(cfg.DataDir, file))
	}
	r := local.NewRing(name, sharedRing{c.State, name})
	c.rings = append(c.rings, r)
	return r, nil
}

// ringRetry is the pause of a leader whose rings could not be made.
const ringRetry = time.Second

// makeRings makes the shared rings that do not exist yet. Until it has, links answer 503.
func (c *Core) makeRings(ctx context.Context, log hclog.Logger) {
	for _, r := range c.rings {
		for {
			err := r.Ensure(ctx)
			if err == nil {
				break
			}
			log.Warn("keys were not made", "error", err, "retry", ringRetry)
			select {
			case <-ctx.Done():
				return
			case <-time.After(ringRetry):
			}
		}
	}
}
