package keys

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrSeal means that what was sealed, or its seal, is not what it was, or that the version of the key is revoked.
var ErrSeal = errors.New("the seal does not fit")

// Sealer seals what is kept where others may change it, such as the manifests of snapshots, with HMAC-SHA256. It never waits: its keys are
// in memory.
type Sealer struct {
	Ring Ring
	// Purpose is what is sealed: a seal for one purpose is none for another, also where they share a ring.
	Purpose string
}

// Seal returns the newest version of the key and the MAC under it.
func (s Sealer) Seal(_ context.Context, data []byte) (KeyVersion, []byte, error) {
	k, err := s.Ring.Current()
	if err != nil {
		return 0, nil, fmt.Errorf("seal: %w", err)
	}
	return k.Version, s.mac(k, data), nil
}

// Check returns an error with ErrSeal in its chain where mac is not data's under a version, and another where nobody can tell.
func (s Sealer) Check(_ context.Context, data []byte, v KeyVersion, mac []byte) error {
	k, err := s.Ring.Key(v)
	if errors.Is(err, ErrKeyRevoked) {
		return fmt.Errorf("%w: %w", ErrSeal, err)
	}
	if err != nil {
		return fmt.Errorf("check a seal: %w", err)
	}
	if !hmac.Equal(mac, s.mac(k, data)) {
		return ErrSeal
	}
	return nil
}

func (s Sealer) mac(k MACKey, data []byte) []byte {
	m := hmac.New(sha256.New, k.Secret)
	_, _ = fmt.Fprintf(m, "soulbox seal\n%d:%s\n", len(s.Purpose), s.Purpose)
	_, _ = m.Write(data)
	return m.Sum(nil)
}
