package local

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/soulbox-dev/soulbox/control/keys"
)

const (
	ringFormat = 1
	secretLen  = 32
	maxKeys    = 1000
)

// Ring is a ring of keys in a file, which is its owner's alone. Each server has its own.
type Ring struct {
	path string

	mu    sync.RWMutex
	state ringState
}

var _ keys.Ring = (*Ring)(nil)

// ringState is the file's content, as JSON.
type ringState struct {
	Format int               `json:"format"`
	Last   keys.KeyVersion   `json:"last"` // the highest version that ever was
	Keys   map[string][]byte `json:"keys"` // by version
	List   []keys.MACKey     `json:"-"`    // in the order of versions; never empty
}

// OpenRing reads the ring at path, and makes it with a first key where it does not exist.
func OpenRing(path string) (*Ring, error) {
	r := &Ring{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, fmt.Errorf("ring of keys: %w", err)
		}
		_, err := r.Rotate(context.Background())
		return r, err
	}
	if err != nil {
		return nil, fmt.Errorf("ring of keys: %w", err)
	}
	if err := json.Unmarshal(b, &r.state); err != nil {
		return nil, fmt.Errorf("ring of keys %s: %w", path, err)
	}
	if r.state.Format != ringFormat {
		return nil, fmt.Errorf("ring of keys %s: format %d, this version reads %d", path, r.state.Format, ringFormat)
	}
	for name, secret := range r.state.Keys {
		var v keys.KeyVersion
		if _, err := fmt.Sscan(name, &v); err != nil || v == 0 || v > r.state.Last || len(secret) != secretLen {
			return nil, fmt.Errorf("ring of keys %s: version %.20q is damaged", path, name)
		}
		r.state.List = append(r.state.List, keys.MACKey{Version: v, Secret: secret})
	}
	slices.SortFunc(r.state.List, func(a, b keys.MACKey) int { return int(int64(a.Version) - int64(b.Version)) })
	if len(r.state.List) == 0 {
		return nil, fmt.Errorf("ring of keys %s: holds no key", path)
	}
	return r, nil
}

// Current implements keys.Ring.
func (r *Ring) Current() (keys.MACKey, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.state.List[len(r.state.List)-1], nil
}

// Key implements keys.Ring.
func (r *Ring) Key(v keys.KeyVersion) (keys.MACKey, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, k := range r.state.List {
		if k.Version == v {
			return k, nil
		}
	}
	return keys.MACKey{}, fmt.Errorf("key version %d: %w", v, keys.ErrKeyRevoked)
}

// Rotate implements keys.Ring.
func (r *Ring) Rotate(context.Context) (keys.MACKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, k := r.grown()
	if len(next.List) > maxKeys {
		return keys.MACKey{}, fmt.Errorf("ring of keys: more than %d versions are not revoked", maxKeys)
	}
	return k, r.store(next)
}

// Revoke implements keys.Ring.
func (r *Ring) Revoke(_ context.Context, v keys.KeyVersion) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.state
	if next.List[len(next.List)-1].Version == v {
		next, _ = r.grown()
	}
	i := slices.IndexFunc(next.List, func(k keys.MACKey) bool { return k.Version == v })
	if i < 0 {
		return fmt.Errorf("key version %d: %w", v, keys.ErrKeyRevoked)
	}
	next.List = slices.Clone(next.List[i+1:])
	return r.store(next)
}

// grown returns the state with one more version.
func (r *Ring) grown() (ringState, keys.MACKey) {
	secret := make([]byte, secretLen)
	_, _ = rand.Read(secret) // never fails on Linux
	next := r.state
	next.Format, next.Last = ringFormat, next.Last+1
	k := keys.MACKey{Version: next.Last, Secret: secret}
	next.List = append(slices.Clone(next.List), k)
	return next, k
}

// store makes a state durable, and then the ring's own.
func (r *Ring) store(s ringState) error {
	s.Keys = make(map[string][]byte, len(s.List))
	for _, k := range s.List {
		s.Keys[fmt.Sprint(k.Version)] = k.Secret
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := keys.WriteFile(r.path, b); err != nil {
		return fmt.Errorf("ring of keys: %w", err)
	}
	r.state = s
	return nil
}
