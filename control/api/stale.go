package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Stale says how old the answers of reads may be that were made with it. It is safe for concurrent use.
type Stale struct {
	mu    sync.Mutex
	age   time.Duration
	known bool
}

// Age returns how far the oldest of the answers may lag behind what is true. ok is false where none says so: the service has one server, or does not answer
// that read from another.
func (s *Stale) Age() (age time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.age, s.known
}

type staleKey struct{}

// AllowStale returns a context with which whichever control server is asked answers reads from its own tables: at once, also while none leads, and maybe
// behind what was written. s, which may be nil, tells how far. Writes, and reads that only the server that leads can answer, are as without it.
func AllowStale(ctx context.Context, s *Stale) context.Context {
	if s == nil {
		s = new(Stale)
	}
	return context.WithValue(ctx, staleKey{}, s)
}

// allowStale adds to a read's parameters that its answer may lag.
func allowStale(ctx context.Context, method string, q url.Values) url.Values {
	if _, ok := ctx.Value(staleKey{}).(*Stale); !ok || method != http.MethodGet {
		return q
	}
	out := url.Values{"stale": {"true"}}
	for name, vs := range q {
		out[name] = vs
	}
	return out
}

// noteAge tells the context of a read how old its answer may be.
func noteAge(ctx context.Context, resp *http.Response) {
	s, ok := ctx.Value(staleKey{}).(*Stale)
	if !ok {
		return
	}
	ms, err := strconv.ParseInt(resp.Header.Get(AgeHeader), 10, 64)
	if err != nil || ms < 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = true
	s.age = max(s.age, time.Duration(ms)*time.Millisecond)
}
