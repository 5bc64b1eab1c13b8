package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

func one(i int) OneClaim { return OneClaim{ID: api.SandboxID(fmt.Sprintf("i%020d", i))} }

// mills is a send whose requests last until they are let go, and that notes what each had.
type mills struct {
	mu    sync.Mutex
	sent  [][]api.SandboxID
	begun chan struct{}
	leave chan struct{}
}

func newMills() *mills {
	return &mills{begun: make(chan struct{}, 1000), leave: make(chan struct{})}
}

func (m *mills) send(_ context.Context, list []*claimCall) {
	var ids []api.SandboxID
	for _, c := range list {
		ids = append(ids, c.claim.ID)
		c.err = errors.New(string(c.claim.ID))
	}
	m.mu.Lock()
	m.sent = append(m.sent, ids)
	m.mu.Unlock()
	m.begun <- struct{}{}
	<-m.leave
}

func (q *claims) waits() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting for " + what)
		}
	}
}

func TestClaims_thatComeMeanwhileGoTogether(t *testing.T) {
	m := newMills()
	q := &claims{send: m.send}
	var wg sync.WaitGroup
	start := func(i int) {
		wg.Go(func() { must.EqError(t, q.do(t.Context(), one(i)), string(one(i).ID)) })
	}
	for i := range claimsFlying { // each on its own, since nobody else is there
		start(i)
		<-m.begun
	}
	for i := range MaxClaims + 3 {
		start(claimsFlying + i)
		waitFor(t, "a claim to wait", func() bool { return q.waits() == i+1 })
	}
	close(m.leave)
	wg.Wait()
	sizes := map[int]int{}
	for _, ids := range m.sent {
		sizes[len(ids)]++
	}
	must.GreaterEq(t, claimsFlying, sizes[1], must.Sprint(sizes)) // and perhaps what is left over
	must.LessEq(t, claimsFlying+3, len(m.sent), must.Sprint(sizes))
	must.Eq(t, 0, q.leaders)
	must.Eq(t, 0, q.waits())
}

func TestClaims_whoGivesUpIsNotSentAndHoldsUpNobody(t *testing.T) {
	m := newMills()
	q := &claims{send: m.send}
	var wg sync.WaitGroup
	for i := range claimsFlying {
		wg.Go(func() { must.EqError(t, q.do(t.Context(), one(i)), string(one(i).ID)) })
		<-m.begun
	}
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- q.do(ctx, one(10)) }()
	waitFor(t, "the claim to wait", func() bool { return q.waits() == 1 })
	wg.Go(func() { must.EqError(t, q.do(t.Context(), one(11)), string(one(11).ID)) })
	waitFor(t, "the second claim to wait", func() bool { return q.waits() == 2 })
	cancel()
	must.ErrorIs(t, <-gone, context.Canceled)
	close(m.leave)
	wg.Wait()
	for _, ids := range m.sent {
		must.SliceNotContains(t, ids, one(10).ID)
	}
	must.Eq(t, 0, q.leaders)
}

// Whatever comes and gives up when: each is sent at most once, each that does not give up is answered with its own, and nothing stays behind.
func TestClaims_eachIsSentOnceWhoeverGivesUp(t *testing.T) {
	var mu sync.Mutex
	sent := map[api.SandboxID]int{}
	q := &claims{send: func(_ context.Context, list []*claimCall) {
		if len(list) > MaxClaims {
			t.Errorf("%d claims in one request", len(list))
		}
		time.Sleep(rand.N(200 * time.Microsecond)) // a request takes a while
		mu.Lock()
		defer mu.Unlock()
		for _, c := range list {
			sent[c.claim.ID]++
			c.err = errors.New(string(c.claim.ID))
		}
	}}
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				ctx, cancel = context.WithTimeout(ctx, rand.N(2*time.Millisecond))
				defer cancel()
			}
			err := q.do(ctx, one(i))
			if i%3 != 0 || !errors.Is(err, context.DeadlineExceeded) {
				must.EqError(t, err, string(one(i).ID))
			}
		})
	}
	wg.Wait()
	for id, n := range sent {
		must.Eq(t, 1, n, must.Sprint(id))
	}
	must.GreaterEq(t, 2000, len(sent))
	must.Eq(t, 0, q.leaders)
	must.Eq(t, 0, q.waits())
}
