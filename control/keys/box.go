package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Box encrypts what is kept, such as secrets of tenants, with AES-256-GCM under keys that follow from those of a ring. It never waits: its keys
// are in memory. A version of the ring that is revoked takes what is under it along.
type Box struct {
	Ring Ring
	// Purpose is what is encrypted: what is for one purpose does not open for another, also where they share a ring.
	Purpose string
}

// Close returns what text is kept as, and the version of the key. bound is what it belongs to: it opens with the same only.
func (b Box) Close(bound string, text []byte) (KeyVersion, []byte, error) {
	k, err := b.Ring.Current()
	if err != nil {
		return 0, nil, fmt.Errorf("encrypt: %w", err)
	}
	a, err := b.aead(k)
	if err != nil {
		return 0, nil, err
	}
	nonce := make([]byte, a.NonceSize())
	_, _ = rand.Read(nonce) // never fails on Linux
	return k.Version, a.Seal(nonce, nonce, text, []byte(bound)), nil
}

// Open returns what Close was given, or an error with ErrSeal in its chain where data or bound are other than they were or the version is
// revoked, and another where nobody can tell.
func (b Box) Open(bound string, v KeyVersion, data []byte) ([]byte, error) {
	k, err := b.Ring.Key(v)
	if errors.Is(err, ErrKeyRevoked) {
		return nil, fmt.Errorf("%w: %w", ErrSeal, err)
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	a, err := b.aead(k)
	if err != nil {
		return nil, err
	}
	if len(data) < a.NonceSize() {
		return nil, ErrSeal
	}
	text, err := a.Open(nil, data[:a.NonceSize()], data[a.NonceSize():], []byte(bound))
	if err != nil {
		return nil, ErrSeal
	}
	return text, nil
}

func (b Box) aead(k MACKey) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, k.Secret, nil, fmt.Sprintf("soulbox box\n%d:%s\n", len(b.Purpose), b.Purpose), 32)
	if err != nil {
		return nil, fmt.Errorf("key for %s: %w", b.Purpose, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key for %s: %w", b.Purpose, err)
	}
	return cipher.NewGCM(block)
}
