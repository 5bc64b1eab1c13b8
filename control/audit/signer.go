package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// AlgorithmEd25519 is the one algorithm of signatures so far: RFC 8032, over the message itself.
const AlgorithmEd25519 = "ed25519"

// MaxSignBatch is how many messages one call of Sign has at most.
const MaxSignBatch = 256

// Signer signs the heads of a log with a key that has versions. The key may be on this machine or far away: nothing waits for it
// but the heads themselves. Implementations are safe for concurrent use and keep these rules, which keystest checks:
//
//   - Sign signs 1 to MaxSignBatch messages, in their order, all with one version, the newest. It signs all or none. A message is
//     never empty and at most 4 KiB.
//   - PublicKeys returns every version that a signature may be of, oldest first, each with its public key, so that signatures can be
//     checked without the signer. A version never changes its key. A version that was signed with stays in the list after a
//     rotation, for as long as its key is not taken away on purpose.
//   - A signer that cannot be reached answers with an *api.Error of status 503, before long and whenever ctx ends. Its caller asks
//     again later.
type Signer interface {
	Sign(ctx context.Context, messages [][]byte) ([]Signature, error)
	PublicKeys(ctx context.Context) ([]PublicKey, error)
}

// Signature is the signature of one message.
type Signature struct {
	Version   keys.KeyVersion
	Algorithm string
	Value     []byte // as the algorithm has it: 64 bytes of Ed25519
}

// PublicKey is what the signatures of one version are checked with.
type PublicKey struct {
	Version   keys.KeyVersion `json:"version"`
	Algorithm string          `json:"algorithm"`
	Key       []byte          `json:"key"` // as the algorithm has it: 32 bytes of Ed25519
}

// maxMessage is how long a message may be, in bytes.
const maxMessage = 4 << 10

// CheckMessages returns what makes a call of Sign wrong. Every Signer calls it.
func CheckMessages(messages [][]byte) error {
	if len(messages) == 0 || len(messages) > MaxSignBatch {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "sign: %d messages, 1 to %d are allowed", len(messages), MaxSignBatch)
	}
	for i, m := range messages {
		if len(m) == 0 || len(m) > maxMessage {
			return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "sign: message %d is %d bytes, 1 to %d are allowed", i, len(m), maxMessage)
		}
	}
	return nil
}

// ErrSignature means that a signature does not fit its message and key.
var ErrSignature = errors.New("the signature does not fit")

// Check returns what makes k no key.
func (k PublicKey) Check() error {
	if k.Algorithm != AlgorithmEd25519 {
		return fmt.Errorf("key version %d: algorithm %.40q, this version of SoulBox knows %s", k.Version, k.Algorithm, AlgorithmEd25519)
	}
	if k.Version == 0 || len(k.Key) != ed25519.PublicKeySize {
		return fmt.Errorf("key version %d: %d bytes are no public key of %s", k.Version, len(k.Key), k.Algorithm)
	}
	return nil
}

// Verify returns an error with ErrSignature in its chain where sig is not k's signature of message.
func (k PublicKey) Verify(message []byte, sig Signature) error {
	if err := k.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if sig.Version != k.Version || sig.Algorithm != k.Algorithm {
		return fmt.Errorf("%w: it is of version %d (%.40s), the key of version %d (%s)", ErrSignature, sig.Version, sig.Algorithm, k.Version, k.Algorithm)
	}
	if !ed25519.Verify(k.Key, message, sig.Value) {
		return ErrSignature
	}
	return nil
}

// Fingerprint names the key whatever its version is called: two signers may both have a version 1.
func (k PublicKey) Fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "soulbox audit key\n%s\n", k.Algorithm)
	h.Write(k.Key)
	return hex.EncodeToString(h.Sum(nil)[:16])
}
