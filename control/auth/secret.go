package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
)

// An API key is 8 bytes of id and 32 random bytes of secret. It has two spellings, which are the same key:
//
//	sb_<16 hex digits of id>_<64 hex digits of secret>
//	e2b_<80 hex digits: id, then secret>
const (
	prefixOwn = "sb_"
	prefixE2B = "e2b_"

	idBytes     = 8
	secretBytes = 32
	idDigits    = 2 * idBytes
	allDigits   = 2 * (idBytes + secretBytes)
)

// errMalformed is the answer to a key of another form. It does not tell what is wrong with it.
var errMalformed = errors.New("the API key is malformed")

// Secret is an API key with its secret: what only its holder has. It is never logged: String hides it.
type Secret struct {
	id     [idBytes]byte
	secret [secretBytes]byte
}

// newSecret returns a new random key.
func newSecret() Secret {
	var s Secret
	_, _ = rand.Read(s.id[:]) // never fails on Linux
	_, _ = rand.Read(s.secret[:])
	return s
}

// ID returns the key's id, which is no secret.
func (s Secret) ID() string { return hex.EncodeToString(s.id[:]) }

// Key returns the spelling sb_<id>_<secret>.
func (s Secret) Key() string {
	return prefixOwn + s.ID() + "_" + hex.EncodeToString(s.secret[:])
}

// E2BKey returns the spelling e2b_<hex>.
func (s Secret) E2BKey() string {
	return prefixE2B + s.ID() + hex.EncodeToString(s.secret[:])
}

// String returns the key with its secret masked.
func (s Secret) String() string { return prefixOwn + s.ID() + "_…" }

// GoString is String, so that %#v hides the secret too.
func (s Secret) GoString() string { return s.String() }

// hash is what is stored of the secret. One round of SHA-256 is enough: the secret is 256 random bits, not a password.
func (s Secret) hash() [sha256.Size]byte { return sha256.Sum256(s.secret[:]) }

// parseKey reads either spelling. Only lower-case digits count, so that a key has exactly two spellings.
func parseKey(key string) (Secret, error) {
	digits, ok := strings.CutPrefix(key, prefixE2B)
	if !ok {
		rest, own := strings.CutPrefix(key, prefixOwn)
		if !own || len(rest) != allDigits+1 || rest[idDigits] != '_' {
			return Secret{}, errMalformed
		}
		digits = rest[:idDigits] + rest[idDigits+1:]
	}
	if len(digits) != allDigits || strings.ToLower(digits) != digits {
		return Secret{}, errMalformed
	}
	var raw [idBytes + secretBytes]byte
	if _, err := hex.Decode(raw[:], []byte(digits)); err != nil {
		return Secret{}, errMalformed
	}
	var s Secret
	copy(s.id[:], raw[:idBytes])
	copy(s.secret[:], raw[idBytes:])
	return s, nil
}
