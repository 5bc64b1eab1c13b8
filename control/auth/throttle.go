package auth

import (
	"math"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/soulbox-dev/soulbox/control/api"
)

// A source has failureBurst failures at once, and then one each failureEvery. Sources beyond maxSources are forgotten, those
// that were quiet the longest first: the memory is bounded whoever attacks.
const (
	failureBurst = 20
	failureEvery = time.Second
	maxSources   = 10_000
)

// throttle counts failed attempts of sources.
type throttle struct {
	now func() time.Time

	mu      sync.Mutex
	sources *simplelru.LRU[netip.Prefix, failures]
}

// failures is a bucket that fills with failures and drains with time.
type failures struct {
	level float64
	at    time.Time
}

func newThrottle(now func() time.Time) *throttle {
	if now == nil {
		now = time.Now
	}
	sources, err := simplelru.NewLRU[netip.Prefix, failures](maxSources, nil)
	if err != nil {
		panic(err) // the size is positive
	}
	return &throttle{now: now, sources: sources}
}

// sourceOf is what counts as one source: an address, and of IPv6 the network of one customer.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero prefix for the zero address: all that come by a socket of this machine
	return p
}

// wait returns how long a source has to wait before it is heard, 0: not at all.
func (t *throttle) wait(a netip.Addr) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, ok := t.sources.Peek(sourceOf(a))
	if !ok {
		return 0
	}
	return f.drained(t.now()).over()
}

// failed counts a failure, and returns how long the source has to wait.
func (t *throttle) failed(a netip.Addr) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, now := sourceOf(a), t.now()
	f, _ := t.sources.Get(key)
	f = f.drained(now)
	f.level++
	t.sources.Add(key, f)
	return f.over()
}

func (f failures) drained(now time.Time) failures {
	if f.at.IsZero() {
		return failures{at: now}
	}
	return failures{level: max(0, f.level-float64(now.Sub(f.at))/float64(failureEvery)), at: now}
}

func (f failures) over() time.Duration {
	if f.level <= failureBurst {
		return 0
	}
	return time.Duration((f.level - failureBurst) * float64(failureEvery))
}

// ThrottledError is the refusal of a source that has failed too often.
type ThrottledError struct {
	answer *api.Error
	after  time.Duration
}

// Error implements error.
func (e *ThrottledError) Error() string { return e.answer.Error() }

// Unwrap returns it as an *api.Error.
func (e *ThrottledError) Unwrap() error { return e.answer }

// RetryAfter is how long to wait.
func (e *ThrottledError) RetryAfter() time.Duration { return e.after }

func throttled(wait time.Duration) error {
	return &ThrottledError{api.Errorf(http.StatusTooManyRequests, api.CodeThrottled,
		"too many requests from your address were not authenticated: try again in %d s", int(math.Ceil(wait.Seconds()))), wait}
}
