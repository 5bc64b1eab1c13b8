package vault

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeVault is an engine with one key, behind Vault's API.
type fakeVault struct {
	calls  atomic.Int64
	mu     sync.Mutex
	status int           // where not 200
	hang   chan struct{} // where not nil, nobody is answered before it is closed
	first  int           // version that is not revoked
	last   int
}

func (f *fakeVault) set(change func(*fakeVault)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.calls.Add(1)
	f.mu.Lock()
	status, hang := f.status, f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
			return
		}
	}
	if status != 0 {
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, `{"errors":["Vault is sealed"]}`)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/rotate") {
		f.last++
	}
	list := map[string]string{}
	for v := f.first; v <= f.last; v++ {
		list[fmt.Sprint(v)] = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune('a'+v)), 32)))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"keys": list}})
}

// rig is a ring on a fake Vault, with a clock.
type rig struct {
	vault *fakeVault
	ring  *Ring
	mu    sync.Mutex
	clock time.Time
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{vault: &fakeVault{first: 1, last: 2}, clock: time.Now()}
	srv := httptest.NewServer(r.vault)
	t.Cleanup(srv.Close)
	c, err := Connect(Config{Address: srv.URL, Token: "t"})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	c.breaker.now = r.now
	r.ring, err = c.OpenRing(t.Context(), RingConfig{Key: "soulbox/url-keys/links", MaxAge: time.Minute, Now: r.now})
	must.NoError(t, err)
	return r
}

func TestRing_answersFromItsCopy(t *testing.T) {
	r := newRig(t)
	before := r.vault.calls.Load()
	for range 100 {
		k, err := r.ring.Current()
		must.NoError(t, err)
		must.Eq(t, 2, k.Version)
		_, err = r.ring.Key(1)
		must.NoError(t, err)
	}
	must.Eq(t, before, r.vault.calls.Load(), must.Sprint("no call of Vault on the way of a request"))
}

func TestRing_withoutVaultTheCopyIsGoodForItsTime(t *testing.T) {
	for name, gone := range map[string]func(*fakeVault){
		"sealed":              func(f *fakeVault) { f.status = http.StatusServiceUnavailable },
		"the token has ended": func(f *fakeVault) { f.status = http.StatusForbidden },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.vault.set(gone)
			r.pass(59 * time.Second)
			must.Error(t, r.ring.refresh(t.Context()))
			_, err := r.ring.Current()
			must.NoError(t, err)
			r.pass(2 * time.Second)
			for _, f := range []func() error{
				func() error { _, err := r.ring.Current(); return err },
				func() error { _, err := r.ring.Key(1); return err },
				func() error { _, err := r.ring.Rotate(t.Context()); return err },
				func() error { return r.ring.Revoke(t.Context(), 1) },
			} {
				err := f()
				must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(err))
				must.False(t, errors.Is(err, keys.ErrKeyRevoked))
			}
			r.vault.set(func(f *fakeVault) { f.status = 0 })
			r.pass(breakLimit)
			must.NoError(t, r.ring.refresh(t.Context()))
			_, err = r.ring.Current()
			must.NoError(t, err)
		})
	}
}

func TestRing_whatIsRevokedInVaultIsRefusedAfterARefresh(t *testing.T) {
	r := newRig(t)
	_, err := r.ring.Key(1)
	must.NoError(t, err)
	r.vault.set(func(f *fakeVault) { f.first = 2 })
	must.NoError(t, r.ring.refresh(t.Context()))
	_, err = r.ring.Key(1)
	must.ErrorIs(t, err, keys.ErrKeyRevoked)
}

func TestOpenRing_refusesWhatIsNoKey(t *testing.T) {
	r := newRig(t)
	c, _ := r.ring.source.(urlKeys)
	for _, bad := range []KeyPath{"", "links", "url-keys/links", "soulbox/creds/dev", "soulbox/url-keys/"} {
		_, err := c.client.OpenRing(t.Context(), RingConfig{Key: bad})
		must.ErrorContains(t, err, "want <mount>/url-keys/<name>", must.Sprint(bad))
	}
	must.ErrorContains(t, KeyPath("soulbox/url-keys/links").CheckSigner(), "want <mount>/keys/<name>")
	for _, data := range []map[string]any{
		{}, {"keys": map[string]any{}}, {"keys": map[string]any{"1": "AAAA"}}, {"keys": map[string]any{"0": strings.Repeat("A", 43) + "="}},
		{"keys": map[string]any{"x": strings.Repeat("A", 43) + "="}}, {"keys": map[string]any{"1": 7}},
	} {
		_, err := secretsOf(data)
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err), must.Sprint(data))
	}
}

func TestClient_waitsForNoVaultThatDoesNotAnswer(t *testing.T) {
	r := newRig(t)
	hang := make(chan struct{})
	defer close(hang)
	r.vault.set(func(f *fakeVault) { f.hang = hang })
	for range breakAfter {
		begin := time.Now()
		must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(r.ring.refresh(t.Context())))
		must.Less(t, 5*callTimeout, time.Since(begin))
	}
	before := r.vault.calls.Load()
	err := r.ring.refresh(t.Context())
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
	must.ErrorContains(t, err, "has not answered 3 times")
	must.Eq(t, before, r.vault.calls.Load(), must.Sprint("nobody asks"))
	_, err = r.ring.Current()
	must.NoError(t, err)

	r.vault.set(func(f *fakeVault) { f.hang = nil })
	r.pass(breakFirst)
	must.NoError(t, r.ring.refresh(t.Context()), must.Sprint("one call tries again"))
	must.NoError(t, r.ring.refresh(t.Context()))
}

func TestClient_acceptsWhatNobodyListensAt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	address := l.Addr().String()
	must.NoError(t, l.Close())
	c, err := Connect(Config{Address: "http://" + address, Token: "t"})
	must.NoError(t, err)
	_, err = c.OpenRing(t.Context(), RingConfig{Key: "soulbox/url-keys/links"})
	must.Eq(t, http.StatusServiceUnavailable, api.StatusOf(err))
}

func TestBreaker_opensLongerEachTimeAndTriesOne(t *testing.T) {
	now := time.Unix(0, 0)
	b := breaker{now: func() time.Time { return now }}
	for range breakAfter {
		must.NoError(t, b.allow())
		b.failed(fmt.Errorf("down"))
	}
	must.Error(t, b.allow())
	for _, pause := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, breakLimit, breakLimit} {
		now = now.Add(pause - 1)
		must.Error(t, b.allow())
		now = now.Add(1)
		must.NoError(t, b.allow())
		must.Error(t, b.allow(), must.Sprint("one at a time"))
		b.failed(fmt.Errorf("down"))
	}
	now = now.Add(breakLimit)
	must.NoError(t, b.allow())
	b.forgive()
	must.NoError(t, b.allow())
	b.worked()
	for range 2 {
		must.NoError(t, b.allow())
	}
}

func TestParseSignature_refusesWhatIsNone(t *testing.T) {
	for _, bad := range []string{"", "vault:v1", "vault:v0:AAAA", "vault:vx:AAAA", "vault:v1:%", "transit:v1:AAAA"} {
		_, err := parseSignature(bad)
		must.Error(t, err, must.Sprint(bad))
	}
	sig, err := parseSignature("vault:v12:AAAA")
	must.NoError(t, err)
	must.Eq(t, 12, sig.Version)
}
