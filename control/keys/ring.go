package keys

import "errors"

// KeyVersion counts the keys of a ring, from 1 on. A version is never used again.
type KeyVersion uint32

// MACKey is a key of a ring, for HMAC-SHA256.
type MACKey struct {
	Version KeyVersion
	Secret  []byte // 32 random bytes
}

// ErrKeyRevoked is in the chain of the error for a version that was revoked, or never was.
var ErrKeyRevoked = errors.New("the key version is revoked or unknown")

// Ring holds the versions of one secret. Signing takes the current one; what an older one signed is good until that version is
// revoked. Current and Key answer from memory, for every request, from any goroutine; Rotate and Revoke may take as long as storing
// takes, and count for all later calls once they have returned.
type Ring interface {
	Current() MACKey
	// Key returns a version, or an error with ErrKeyRevoked in its chain.
	Key(v KeyVersion) (MACKey, error)
	// Rotate makes a new version and returns it: it is the current one from then on.
	Rotate() (MACKey, error)
	// Revoke takes a version away, for good. Where it is the current one, a new one is made first.
	Revoke(v KeyVersion) error
}
