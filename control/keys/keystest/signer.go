package keystest

import (
	"bytes"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// SignerUnderTest is one signer, and what a test does to its key from outside.
type SignerUnderTest struct {
	Open   func(t *testing.T) audit.Signer // the same key each time, as after a restart
	Rotate func(t *testing.T)              // makes a new version of the key; signers that are open know it before long
}

// Signer checks that an audit.Signer keeps the contract.
func Signer(t *testing.T, under SignerUnderTest) {
	s := under.Open(t)
	public := func(t *testing.T, s audit.Signer) map[keys.KeyVersion]audit.PublicKey {
		t.Helper()
		list, err := s.PublicKeys(t.Context())
		must.NoError(t, err)
		out := map[keys.KeyVersion]audit.PublicKey{}
		last := keys.KeyVersion(0)
		for _, k := range list {
			must.NoError(t, k.Check())
			must.Greater(t, last, k.Version, must.Sprint("oldest first"))
			last = k.Version
			out[k.Version] = k
		}
		return out
	}
	sign := func(t *testing.T, s audit.Signer, n int) ([][]byte, []audit.Signature) {
		t.Helper()
		var messages [][]byte
		for i := range n {
			messages = append(messages, fmt.Appendf(nil, "message %d \x00\xff", i))
		}
		sigs, err := s.Sign(t.Context(), messages)
		must.NoError(t, err)
		must.Len(t, n, sigs)
		return messages, sigs
	}

	t.Run("each message of a batch has its own signature, all of the newest version", func(t *testing.T) {
		messages, sigs := sign(t, s, audit.MaxSignBatch)
		known := public(t, s)
		newest := keys.KeyVersion(0)
		for v := range known {
			newest = max(newest, v)
		}
		for i, sig := range sigs {
			must.Eq(t, newest, sig.Version)
			must.NoError(t, known[sig.Version].Verify(messages[i], sig))
			other := sigs[(i+1)%len(sigs)]
			must.ErrorIs(t, known[sig.Version].Verify(messages[i], other), audit.ErrSignature)
		}
	})

	t.Run("a changed message or signature does not fit", func(t *testing.T) {
		messages, sigs := sign(t, s, 1)
		key := public(t, s)[sigs[0].Version]
		changed := bytes.Clone(messages[0])
		changed[0] ^= 1
		must.ErrorIs(t, key.Verify(changed, sigs[0]), audit.ErrSignature)
		bad := sigs[0]
		bad.Value = bytes.Clone(bad.Value)
		bad.Value[10] ^= 1
		must.ErrorIs(t, key.Verify(messages[0], bad), audit.ErrSignature)
		bad = sigs[0]
		bad.Version++
		must.ErrorIs(t, key.Verify(messages[0], bad), audit.ErrSignature)
	})

	t.Run("many may sign at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				m := [][]byte{[]byte("x")}
				sigs, err := s.Sign(t.Context(), m)
				if err != nil || len(sigs) != 1 {
					t.Errorf("sign: %d signatures, %v", len(sigs), err)
				}
			})
		}
		wg.Wait()
	})

	t.Run("bad calls are refused", func(t *testing.T) {
		for name, messages := range map[string][][]byte{
			"none": nil, "an empty one": {[]byte("a"), {}}, "a long one": {make([]byte, 4<<10+1)}, "too many": make([][]byte, audit.MaxSignBatch+1),
		} {
			_, err := s.Sign(t.Context(), messages)
			must.Eq(t, http.StatusBadRequest, api.StatusOf(err), must.Sprintf("%s: %v", name, err))
		}
	})

	t.Run("a rotation and a restart keep what was signed", func(t *testing.T) {
		messages, sigs := sign(t, s, 2)
		before := public(t, s)
		under.Rotate(t)
		again := under.Open(t)
		after := public(t, again)
		must.MapLen(t, len(before)+1, after)
		for v, k := range before {
			must.Eq(t, k, after[v], must.Sprint("a version keeps its key"))
		}
		for i, sig := range sigs {
			must.NoError(t, after[sig.Version].Verify(messages[i], sig))
		}
		_, newer := sign(t, again, 1)
		must.Greater(t, sigs[0].Version, newer[0].Version)
	})
}
