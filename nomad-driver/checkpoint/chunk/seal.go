package chunk

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// LocalKey is a Sealer with one key in a file: for a node on its own. All nodes on one backend need the same file.
type LocalKey struct{ key [32]byte }

var _ Sealer = (*LocalKey)(nil)

// OpenLocalKey reads the key at path, or makes it.
func OpenLocalKey(path string) (*LocalKey, error) {
	k := &LocalKey{}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		_, _ = rand.Read(k.key[:]) // never fails
		return k, writeKey(path, k.key[:])
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot key: %w", err)
	}
	if len(b) != len(k.key) {
		return nil, fmt.Errorf("snapshot key %s has %d bytes, not %d", path, len(b), len(k.key))
	}
	copy(k.key[:], b)
	return k, nil
}

// writeKey makes a key file durably. One that another process has made meanwhile is an error: the next start takes it.
func writeKey(path string, key []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func (k *LocalKey) mac(purpose string, message []byte) []byte {
	h := hmac.New(sha256.New, k.key[:])
	_, _ = h.Write([]byte(purpose + "\x00"))
	_, _ = h.Write(message)
	return h.Sum(nil)
}

// Seal makes a seal of version 1.
func (k *LocalKey) Seal(_ context.Context, message []byte) (int, []byte, error) {
	return 1, k.mac("seal", message), nil
}

// Check checks one.
func (k *LocalKey) Check(_ context.Context, message []byte, version int, mac []byte) error {
	if version != 1 || !hmac.Equal(mac, k.mac("seal", message)) {
		return fmt.Errorf("%w: the seal does not fit", ErrBad)
	}
	return nil
}

// Secret derives a secret.
func (k *LocalKey) Secret(_ context.Context, purpose string) ([32]byte, error) {
	return [32]byte(k.mac("secret", []byte(purpose))), nil
}
