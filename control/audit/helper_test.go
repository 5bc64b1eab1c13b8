package audit

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// signer is a Signer in memory, which can be down.
type signer struct {
	mu   sync.Mutex
	list []ed25519.PrivateKey
	down atomic.Bool
	sign atomic.Int64 // calls
}

var _ Signer = (*signer)(nil)

func newSigner() *signer { s := &signer{}; s.rotate(); return s }

func (s *signer) rotate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = byte(len(s.list) + 1)
	s.list = append(s.list, ed25519.NewKeyFromSeed(seed))
}

func (s *signer) Sign(_ context.Context, messages [][]byte) ([]Signature, error) {
	s.sign.Add(1)
	if s.down.Load() {
		return nil, errors.New("the signer is down")
	}
	if err := CheckMessages(messages); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Signature
	for _, m := range messages {
		out = append(out, Signature{keys.KeyVersion(len(s.list)), AlgorithmEd25519, ed25519.Sign(s.list[len(s.list)-1], m)})
	}
	return out, nil
}

func (s *signer) PublicKeys(context.Context) ([]PublicKey, error) {
	if s.down.Load() {
		return nil, errors.New("the signer is down")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []PublicKey
	for i, k := range s.list {
		out = append(out, PublicKey{keys.KeyVersion(i + 1), AlgorithmEd25519, k.Public().(ed25519.PublicKey)})
	}
	return out, nil
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	if cfg.Signer == nil {
		cfg.Signer = newSigner()
	}
	if cfg.Server == "" {
		cfg.Server = "s1"
	}
	if cfg.SignEvery == 0 {
		cfg.SignEvery = time.Hour // tests sign when they want to
	}
	l, err := Open(cfg)
	must.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func event(n int) Event {
	return Event{
		Tenant: "acme", User: "key:0123456789abcdef", Action: "sandbox.create", Resource: "sandbox",
		ResourceID: fmt.Sprintf("i%020d", n), Result: ResultOK, Source: "192.0.2.7", Agent: "soulbox-go/0.1.0",
		Request: fmt.Sprintf("r%d", n), Details: map[string]string{"status": "201", "template": "base"},
	}
}

// fill appends n events: in their order where they are few.
func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	if n < 10 {
		for i := range n {
			must.NoError(t, l.Append(event(i+1)))
		}
		return
	}
	var wg sync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := w; i < n; i += 50 {
				if err := l.Append(event(i + 1)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// filled returns the folder of a closed log: heads at the events at, and at the end.
func filled(t testing.TB, n int, cfg Config, at ...int) string {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	l := open(t, cfg)
	if n > 100 {
		fill(t, l, n)
		n = 0
	}
	for i := 1; i <= n; i++ {
		must.NoError(t, l.Append(event(i)))
		for _, a := range at {
			if a == i {
				l.sign(t.Context())
			}
		}
	}
	must.NoError(t, l.Close())
	return cfg.Dir
}

func verify(t testing.TB, dir string, o VerifyOptions) Report {
	t.Helper()
	r, err := Verify(dir, o)
	must.NoError(t, err)
	return r
}

// lastSegment is the path of a log's last segment.
func lastSegment(t testing.TB, dir string) string {
	t.Helper()
	firsts, err := listSegments(dir)
	must.NoError(t, err)
	must.Positive(t, len(firsts))
	return filepath.Join(dir, segmentName(firsts[len(firsts)-1]))
}

// records returns a segment's header and its records, each with its frame.
func records(t testing.TB, path string) (head []byte, list [][]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	f, err := os.Open(path)
	must.NoError(t, err)
	defer f.Close()
	_, begin, err := readHeader(f)
	must.NoError(t, err)
	sc := newScanner(f, begin, int64(len(b)))
	for at := begin; ; at = sc.offset {
		if _, err := sc.next(); err != nil {
			return b[:begin], list
		}
		list = append(list, b[at:sc.offset])
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
	}
}
