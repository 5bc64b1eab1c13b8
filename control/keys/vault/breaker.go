package vault

import (
	"net/http"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Steps of the breaker: after so many failures in a row calls fail at once for a while, which doubles with each further failure.
const (
	breakAfter  = 3
	breakFirst  = time.Second
	breakLimit  = 15 * time.Second
	breakGrowth = 2
)

// breaker keeps callers from waiting for a Vault that does not answer: only one call in a while tries.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int
	until    time.Time     // calls fail before it
	pause    time.Duration // of the last opening
	probing  bool          // a call tries
	last     error
}

// allow returns an error where a call would only wait. Every call that is allowed ends with worked, failed or forgive.
func (b *breaker) allow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakAfter {
		return nil
	}
	if b.probing || b.now().Before(b.until) {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault has not answered %d times in a row: %v", b.failures, b.last)
	}
	b.probing = true
	return nil
}

func (b *breaker) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.pause, b.probing, b.last = 0, 0, false, nil
}

func (b *breaker) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	b.last, b.probing = err, false
	if b.failures >= breakAfter {
		b.pause = min(max(breakFirst, b.pause*breakGrowth), breakLimit)
		b.until = b.now().Add(b.pause)
	}
}

// forgive ends a call that says nothing of Vault.
func (b *breaker) forgive() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}
