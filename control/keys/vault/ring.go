package vault

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Times of a ring's copy of its keys.
const (
	// DefaultRefresh is how often the copy is made again: what is revoked in Vault is refused everywhere after this time and a call.
	DefaultRefresh = 5 * time.Second
	// DefaultMaxAge is how long a copy is good while Vault cannot be reached.
	DefaultMaxAge = 15 * time.Minute
)

// RingConfig describes a Ring. Zero values mean the defaults.
type RingConfig struct {
	Key     KeyPath // required
	Refresh time.Duration
	MaxAge  time.Duration
	Now     func() time.Time
}

// Ring is a keys.Ring whose keys are in Vault. It answers from a copy in memory, which Run refreshes.
type Ring struct {
	cfg    RingConfig
	source source
	log    hclog.Logger
	copy   atomic.Pointer[ringCopy]
}

var _ keys.Ring = (*Ring)(nil)

// ringCopy is what Vault had at a time.
type ringCopy struct {
	keys    map[keys.KeyVersion]keys.MACKey
	current keys.MACKey
	at      time.Time
}

// OpenRing returns a ring with a first copy of its keys. The caller runs Run.
func (c *Client) OpenRing(ctx context.Context, cfg RingConfig) (*Ring, error) {
	s, err := c.source(cfg.Key)
	if err != nil {
		return nil, err
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = DefaultRefresh
	}
	if cfg.MaxAge == 0 {
		cfg.MaxAge = DefaultMaxAge
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Ring{cfg: cfg, source: s, log: c.log}
	return r, r.refresh(ctx)
}

// Run refreshes the copy until ctx ends.
func (r *Ring) Run(ctx context.Context) {
	t := time.NewTicker(r.cfg.Refresh)
	defer t.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := r.refresh(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			r.log.Error("keys were not refreshed; the copy stays in use", "key", r.cfg.Key, "good_until", r.copy.Load().at.Add(r.cfg.MaxAge), "error", err)
		}
		if err == nil && failing {
			r.log.Info("keys are refreshed again", "key", r.cfg.Key)
		}
		failing = err != nil
	}
}

// refresh makes a new copy. Its age counts from before the call: nobody knows when Vault has made its answer.
func (r *Ring) refresh(ctx context.Context) error {
	at := r.cfg.Now()
	list, err := r.source.fetch(ctx)
	if err != nil {
		return fmt.Errorf("key %s: %w", r.cfg.Key, err)
	}
	next := &ringCopy{keys: list, at: at}
	for v, k := range list {
		if v > next.current.Version {
			next.current = k
		}
	}
	for {
		old := r.copy.Load()
		if old != nil && old.at.After(at) { // a refresh that began later was faster
			return nil
		}
		if r.copy.CompareAndSwap(old, next) {
			return nil
		}
	}
}

func (r *Ring) fresh() (*ringCopy, error) {
	c := r.copy.Load()
	if age := r.cfg.Now().Sub(c.at); age > r.cfg.MaxAge {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"key %s: vault could not be reached for %s, and copies are good for %s", r.cfg.Key, age.Round(time.Second), r.cfg.MaxAge)
	}
	return c, nil
}

// Current implements keys.Ring.
func (r *Ring) Current() (keys.MACKey, error) {
	c, err := r.fresh()
	if err != nil {
		return keys.MACKey{}, err
	}
	return c.current, nil
}

// Keys implements keys.Ring.
func (r *Ring) Keys() ([]keys.MACKey, error) {
	c, err := r.fresh()
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(c.keys), func(a, b keys.MACKey) int { return cmp.Compare(a.Version, b.Version) }), nil
}

// Key implements keys.Ring.
func (r *Ring) Key(v keys.KeyVersion) (keys.MACKey, error) {
	c, err := r.fresh()
	if err != nil {
		return keys.MACKey{}, err
	}
	k, ok := c.keys[v]
	if !ok {
		return keys.MACKey{}, fmt.Errorf("key version %d: %w", v, keys.ErrKeyRevoked)
	}
	return k, nil
}

// Rotate implements keys.Ring.
func (r *Ring) Rotate(ctx context.Context) (keys.MACKey, error) {
	if err := r.source.rotate(ctx); err != nil {
		return keys.MACKey{}, fmt.Errorf("rotate key %s: %w", r.cfg.Key, err)
	}
	if err := r.refresh(ctx); err != nil {
		return keys.MACKey{}, err
	}
	return r.Current()
}

// Revoke implements keys.Ring.
func (r *Ring) Revoke(ctx context.Context, v keys.KeyVersion) error {
	if err := r.refresh(ctx); err != nil { // others may have rotated
		return err
	}
	if _, err := r.Key(v); err != nil {
		return err
	}
	if r.copy.Load().current.Version == v {
		if _, err := r.Rotate(ctx); err != nil {
			return err
		}
	}
	if err := r.source.raise(ctx, v+1); err != nil {
		return fmt.Errorf("revoke version %d of key %s: %w", v, r.cfg.Key, err)
	}
	return r.refresh(ctx)
}
