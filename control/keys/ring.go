package keys

import (
	"context"
	"errors"
)

// KeyVersion counts the keys of a ring, from 1 on. A version is never used again.
type KeyVersion uint32

// MACKey is a key of a ring, for HMAC-SHA256.
type MACKey struct {
	Version KeyVersion
	Secret  []byte // 32 random bytes
}

// ErrKeyRevoked is in the chain of the error for a version that was revoked, or never was.
var ErrKeyRevoked = errors.New("the key version is revoked or unknown")

// Ring holds the versions of one secret, for HMAC. Signing takes the current one; what an older one signed is good until that version is
// revoked. Current and Key answer from memory, for every request, from any goroutine; Rotate and Revoke may take as long as storing
// takes, and count for all later calls of this server once they have returned, and for the other servers before long.
//
// Where the keys are kept elsewhere and that cannot be reached for longer than a copy of them is good, those three answer with an
// *api.Error of status 503.
type Ring interface {
	Current() (MACKey, error)
	// Key returns a version, or an error with ErrKeyRevoked in its chain.
	Key(v KeyVersion) (MACKey, error)
	// Keys returns all versions that are good, the oldest first: the last one is the current.
	Keys() ([]MACKey, error)
	// Rotate makes a new version and returns it: it is the current one from then on.
	Rotate(ctx context.Context) (MACKey, error)
	// Revoke takes a version and all before it away, for good. Where it is the current one, a new one is made first.
	Revoke(ctx context.Context, v KeyVersion) error
}
