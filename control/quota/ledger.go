// Package quota holds tenants to what they may use, before anything is done for them.
//
// It owns the ledger of this server: what the tables say that each tenant uses, what is about to be added to it, and the rates of calls.
// It never has the last word about what is counted: the tables do, where changes come one by one (package state). It asks nobody and
// waits for nobody. DESIGN.md tells more.
package quota

import (
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Ledger knows what each tenant may use and does. It is safe for concurrent use, has no goroutines, and answers from memory.
type Ledger struct {
	now func() int64 // nanoseconds since any moment

	accounts atomic.Pointer[map[string]*account] // copied to be changed
	mu       sync.Mutex                          // of changes of accounts and of the default
	def      map[string]int64
}

var _ state.Counter = (*Ledger)(nil)

// account is a tenant's. Rates are apart: they are asked for by every call.
type account struct {
	calls, creates rate

	mu   sync.Mutex
	own  map[string]int64
	max  [state.NumLimits]int64
	used state.Use                   // as the tables say
	held state.Use                   // by changes that are on their way to the tables
	by   map[api.SandboxID]state.Use // what each of them holds
}

// New returns an empty ledger: the tables fill it. now is the clock; nil means the machine's, which never goes back.
func New(now func() time.Time) *Ledger {
	start := time.Now()
	l := &Ledger{now: func() int64 { return int64(time.Since(start)) }} // half of what time.Now takes
	if now != nil {
		l.now = func() int64 { return now().UnixNano() }
	}
	l.accounts.Store(&map[string]*account{})
	return l
}

// Reserve takes what a sandbox will use, until the tables count it or Release gives it back. A refusal is a *state.QuotaError. Reserving
// twice for one id changes nothing.
func (l *Ledger) Reserve(tenant string, id api.SandboxID, ask state.Use) error {
	a := l.account(tenant)
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.by[id]; twice {
		return nil
	}
	taken := a.used
	for i, n := range a.held {
		taken[i] += n
	}
	if err := state.Fits(tenant, &a.max, &taken, &ask); err != nil {
		return err
	}
	for i, n := range ask {
		ask[i] = max(0, n) // an ask for all that there is, where there is no limit, holds nothing
		a.held[i] += ask[i]
	}
	a.by[id] = ask
	return nil
}

// Release gives back what a sandbox holds, where it still does: one that the tables count holds nothing.
func (l *Ledger) Release(tenant string, id api.SandboxID) {
	a := l.account(tenant)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.release(id)
}

func (a *account) release(id api.SandboxID) {
	ask, ok := a.by[id]
	if !ok {
		return
	}
	for i, n := range ask {
		a.held[i] -= n
	}
	delete(a.by, id)
}

// Call counts an API call. A refusal is a *RateError.
func (l *Ledger) Call(tenant string) error {
	return l.account(tenant).calls.take(l.now(), tenant, state.LimitCalls)
}

// Create counts a create. A refusal is a *RateError.
func (l *Ledger) Create(tenant string) error {
	return l.account(tenant).creates.take(l.now(), tenant, state.LimitCreates)
}

// account returns a tenant's, and makes it where there is none yet.
func (l *Ledger) account(tenant string) *account {
	if a := (*l.accounts.Load())[tenant]; a != nil {
		return a
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	old := *l.accounts.Load()
	if a := old[tenant]; a != nil {
		return a
	}
	a := &account{by: map[api.SandboxID]state.Use{}}
	a.limits(l.def)
	all := maps.Clone(old)
	all[tenant] = a
	l.accounts.Store(&all)
	return a
}

// limits works out what counts: the own limits, else the default's.
func (a *account) limits(def map[string]int64) {
	for i := range state.NumLimits {
		a.max[i] = state.Unlimited
		if v, ok := a.own[i.String()]; ok {
			a.max[i] = v
		} else if v, ok := def[i.String()]; ok {
			a.max[i] = v
		}
	}
	a.calls.per.Store(a.max[state.LimitCalls])
	a.creates.per.Store(a.max[state.LimitCreates])
}

// Reset implements state.Counter: everything is told anew. What is held stays held.
func (l *Ledger) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.def = nil
	for _, a := range *l.accounts.Load() {
		a.mu.Lock()
		a.own, a.used = nil, state.Use{}
		a.limits(nil)
		a.mu.Unlock()
	}
}

// SetQuota implements state.Counter.
func (l *Ledger) SetQuota(tenant string, limits map[string]int64) {
	if tenant != state.Everywhere {
		a := l.account(tenant)
		l.mu.Lock()
		defer l.mu.Unlock()
		a.mu.Lock()
		defer a.mu.Unlock()
		a.own = limits
		a.limits(l.def)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.def = limits
	for _, a := range *l.accounts.Load() {
		a.mu.Lock()
		a.limits(l.def)
		a.mu.Unlock()
	}
}

// SetUse implements state.Counter. The sandbox that it counts from now on holds nothing any more: in one step, so that it is never counted
// twice, nor not at all.
func (l *Ledger) SetUse(tenant string, use state.Use, admitted api.SandboxID) {
	a := l.account(tenant)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used = use
	if admitted != "" {
		a.release(admitted)
	}
}

// rate admits at most per calls in any second, on average and as a burst. Its zero value admits none: see account.limits. It is one word,
// the time at which the calls that were admitted would be used up (the generic cell rate algorithm).
type rate struct {
	per atomic.Int64 // calls a second
	tat atomic.Int64 // nanoseconds
}

// RateError says that calls come too fast. It has an *api.Error with status 429 in its chain.
type RateError struct {
	Tenant string
	Limit  state.Limit
	Max    int64
	Wait   time.Duration // until there is room for one more
}

func (e *RateError) Error() string {
	return fmt.Sprintf("quota of tenant %s: %s: at most %d are allowed; try again in %s", e.Tenant, e.Limit, e.Max, e.Wait.Round(time.Millisecond))
}

// RetryAfter is how long the client is to wait.
func (e *RateError) RetryAfter() time.Duration { return e.Wait }

// Unwrap is how the API answers.
func (e *RateError) Unwrap() error {
	return api.Errorf(http.StatusTooManyRequests, api.CodeRate, "%s", e.Error())
}

func (r *rate) take(now int64, tenant string, limit state.Limit) error {
	per := r.per.Load()
	if per == state.Unlimited {
		return nil
	}
	if per == 0 {
		return &RateError{Tenant: tenant, Limit: limit, Wait: time.Hour}
	}
	each := max(1, int64(time.Second)/per)
	burst := max(each, int64(time.Second))
	for {
		tat := r.tat.Load()
		next := max(tat, now) + each
		if ahead := next - now; ahead > burst {
			return &RateError{Tenant: tenant, Limit: limit, Max: per, Wait: time.Duration(ahead - burst)}
		}
		if r.tat.CompareAndSwap(tat, next) {
			return nil
		}
	}
}
