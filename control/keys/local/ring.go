package local

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

const (
	ringFormat = 1
	secretLen  = 32
	maxKeys    = 1000
)

// Store keeps the bytes of a ring: a file of this server, or what all servers share. It is safe for concurrent use.
type Store interface {
	// Load returns what is kept now, and its revision, which grows with each change; "" and 0 where there is nothing yet. It is
	// called for every use of a key, so it answers from memory.
	Load() (data string, revision uint64, err error)
	// Save replaces a revision. It returns an error with ErrChanged in its chain where there is another one by now.
	Save(ctx context.Context, data string, revision uint64) error
}

// ErrChanged is in the chain of the error where somebody else has changed a ring at the same time.
var ErrChanged = errors.New("the ring of keys was changed by another server")

// Ring is a ring of keys in a Store.
type Ring struct {
	name   string // for errors
	store  Store
	parsed atomic.Pointer[ringState]
}

var _ keys.Ring = (*Ring)(nil)

// ringState is one revision of a ring.
type ringState struct {
	revision uint64
	last     keys.KeyVersion
	list     []keys.MACKey // in the order of versions; never empty
}

// ringFile is the form in which it is kept, as JSON.
type ringFile struct {
	Format int               `json:"format"`
	Last   keys.KeyVersion   `json:"last"` // the highest version that ever was
	Keys   map[string][]byte `json:"keys"` // by version
}

// OpenRing reads the ring of the file at path, which is its owner's alone, and makes it with a first key where it does not exist.
func OpenRing(path string) (*Ring, error) {
	s, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("ring of keys: %w", err)
	}
	r := NewRing(path, s)
	if err := r.Ensure(context.Background()); err != nil {
		return nil, err
	}
	_, err = r.state()
	return r, err
}

// NewRing returns the ring of a store, which may not exist yet: see Ensure. name is for errors.
func NewRing(name string, store Store) *Ring { return &Ring{name: name, store: store} }

// Ensure makes the ring with a first key where it does not exist.
func (r *Ring) Ensure(ctx context.Context) error {
	data, _, err := r.store.Load()
	if err != nil || data != "" {
		return err
	}
	err = r.save(ctx, (&ringState{}).grown())
	if errors.Is(err, ErrChanged) {
		return nil // another server was faster
	}
	return err
}

// state returns the ring as it is now.
func (r *Ring) state() (*ringState, error) {
	data, revision, err := r.store.Load()
	if err != nil {
		return nil, fmt.Errorf("ring of keys %s: %w", r.name, err)
	}
	if revision == 0 {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "ring of keys %s: the leader has not made it yet", r.name)
	}
	if s := r.parsed.Load(); s != nil && s.revision == revision {
		return s, nil
	}
	s, err := parseRing(data, revision)
	if err != nil {
		return nil, fmt.Errorf("ring of keys %s: %w", r.name, err)
	}
	r.parsed.Store(s)
	return s, nil
}

func parseRing(data string, revision uint64) (*ringState, error) {
	var f ringFile
	if err := json.Unmarshal([]byte(data), &f); err != nil {
		return nil, err
	}
	if f.Format != ringFormat {
		return nil, fmt.Errorf("format %d, this version reads %d", f.Format, ringFormat)
	}
	s := &ringState{revision: revision, last: f.Last}
	for name, secret := range f.Keys {
		v, err := strconv.ParseUint(name, 10, 32)
		if err != nil || v == 0 || keys.KeyVersion(v) > f.Last || len(secret) != secretLen {
			return nil, fmt.Errorf("version %.20q is damaged", name)
		}
		s.list = append(s.list, keys.MACKey{Version: keys.KeyVersion(v), Secret: secret})
	}
	if len(s.list) == 0 {
		return nil, errors.New("it holds no key")
	}
	slices.SortFunc(s.list, func(a, b keys.MACKey) int { return int(int64(a.Version) - int64(b.Version)) })
	return s, nil
}

func (s *ringState) find(v keys.KeyVersion) (int, bool) {
	return slices.BinarySearchFunc(s.list, v, func(k keys.MACKey, v keys.KeyVersion) int { return int(int64(k.Version) - int64(v)) })
}

// grown returns s with one more version.
func (s *ringState) grown() *ringState {
	secret := make([]byte, secretLen)
	_, _ = rand.Read(secret) // never fails on Linux
	k := keys.MACKey{Version: s.last + 1, Secret: secret}
	return &ringState{revision: s.revision, last: k.Version, list: append(slices.Clone(s.list), k)}
}

// save puts a changed state in place of the revision that it was made of.
func (r *Ring) save(ctx context.Context, s *ringState) error {
	f := ringFile{Format: ringFormat, Last: s.last, Keys: make(map[string][]byte, len(s.list))}
	for _, k := range s.list {
		f.Keys[fmt.Sprint(k.Version)] = k.Secret
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = r.store.Save(ctx, string(b), s.revision)
	}
	if err != nil {
		return fmt.Errorf("ring of keys %s: %w", r.name, err)
	}
	return nil
}

// Current implements keys.Ring.
func (r *Ring) Current() (keys.MACKey, error) {
	s, err := r.state()
	if err != nil {
		return keys.MACKey{}, err
	}
	return s.list[len(s.list)-1], nil
}

// Keys implements keys.Ring.
func (r *Ring) Keys() ([]keys.MACKey, error) {
	s, err := r.state()
	if err != nil {
		return nil, err
	}
	return slices.Clone(s.list), nil
}

// Key implements keys.Ring.
func (r *Ring) Key(v keys.KeyVersion) (keys.MACKey, error) {
	s, err := r.state()
	if err != nil {
		return keys.MACKey{}, err
	}
	i, ok := s.find(v)
	if !ok {
		return keys.MACKey{}, fmt.Errorf("key version %d: %w", v, keys.ErrKeyRevoked)
	}
	return s.list[i], nil
}

// Rotate implements keys.Ring.
func (r *Ring) Rotate(ctx context.Context) (keys.MACKey, error) {
	s, err := r.state()
	if err != nil {
		return keys.MACKey{}, err
	}
	if len(s.list) >= maxKeys {
		return keys.MACKey{}, api.Errorf(http.StatusConflict, api.CodeInvalid, "ring of keys %s: %d versions are not revoked, which is the most", r.name, len(s.list))
	}
	next := s.grown()
	if err := r.save(ctx, next); err != nil {
		return keys.MACKey{}, err
	}
	return next.list[len(next.list)-1], nil
}

// Revoke implements keys.Ring.
func (r *Ring) Revoke(ctx context.Context, v keys.KeyVersion) error {
	s, err := r.state()
	if err != nil {
		return err
	}
	i, ok := s.find(v)
	if !ok {
		return fmt.Errorf("key version %d: %w", v, keys.ErrKeyRevoked)
	}
	next := s
	if i == len(s.list)-1 {
		next = s.grown()
	}
	return r.save(ctx, &ringState{revision: s.revision, last: next.last, list: slices.Clone(next.list[i+1:])})
}
