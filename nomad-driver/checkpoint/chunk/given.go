package chunk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
)

// GivenKey is a Sealer whose key the control service gives, which keeps it for all nodes: in Vault, or in its state. It is in memory alone. Before it
// was given, everything is an error with ErrUnavailable in its chain; afterwards the last one that was given is good.
type GivenKey struct{ ring atomic.Pointer[keyRing] }

var _ Sealer = (*GivenKey)(nil)

// Give replaces the key by its versions, each of 32 bytes, and reports whether they are others than before. What is stored from then on is of the highest.
func (k *GivenKey) Give(versions map[int][]byte) (changed bool, err error) {
	if len(versions) == 0 || len(versions) > maxKeys {
		return false, fmt.Errorf("%d versions of the snapshot key, not 1 to %d", len(versions), maxKeys)
	}
	r := &keyRing{Format: keyFormat, Last: slices.Max(slices.Collect(maps.Keys(versions))), Keys: map[string][]byte{}}
	for v, key := range versions {
		if v < 1 || len(key) != keyBytes {
			return false, fmt.Errorf("version %d of the snapshot key is none, or has not %d bytes", v, keyBytes)
		}
		r.Keys[strconv.Itoa(v)] = slices.Clone(key)
	}
	old := k.ring.Swap(r)
	return old == nil || !maps.EqualFunc(old.Keys, r.Keys, bytes.Equal), nil
}

func (k *GivenKey) now() (*keyRing, error) {
	r := k.ring.Load()
	if r == nil {
		return nil, fmt.Errorf("%w: the control service has not given this node the snapshot key yet", ErrUnavailable)
	}
	return r, nil
}

// Current implements Sealer.
func (k *GivenKey) Current(context.Context) (int, error) {
	r, err := k.now()
	if err != nil {
		return 0, err
	}
	return r.current(), nil
}

// Seal implements Sealer.
func (k *GivenKey) Seal(_ context.Context, version int, message []byte) ([]byte, error) {
	r, err := k.now()
	if err != nil {
		return nil, err
	}
	return r.mac(version, "seal", message)
}

// Check implements Sealer.
func (k *GivenKey) Check(_ context.Context, message []byte, version int, mac []byte) error {
	r, err := k.now()
	if err != nil {
		return err
	}
	return r.check(message, version, mac)
}

// Secret implements Sealer.
func (k *GivenKey) Secret(_ context.Context, version int, purpose string) ([32]byte, error) {
	r, err := k.now()
	if err != nil {
		return [32]byte{}, err
	}
	return r.secret(version, purpose)
}

// Identity implements Sealer: whoever asks compares nodes of one control service, which all have its key.
func (k *GivenKey) Identity(context.Context) ([32]byte, error) {
	return sha256.Sum256([]byte("snapshot key of the control service")), nil
}
