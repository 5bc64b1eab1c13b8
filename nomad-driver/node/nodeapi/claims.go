package nodeapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

const (
	// claimsFlying is how many requests with claims a client has on their way: while they are answered the next one is gathered.
	claimsFlying = 2
	// claimsTimeout bounds one of them.
	claimsTimeout = 30 * time.Second
)

// claims gathers claims that come while others are on their way: what HTTP costs is paid once for all that go together. Who comes first sends at once. There is no
// goroutine of its own: of those who wait one leads, which is to send its own with all others, and then to make another one lead.
type claims struct {
	send func(ctx context.Context, list []*claimCall)

	mu      sync.Mutex
	waiting []*claimCall
	leaders int
}

// claimCall is one claim that somebody waits for.
type claimCall struct {
	claim OneClaim
	leads bool          // claims.mu guards it
	lead  chan struct{} // closed when it leads
	done  chan struct{} // closed when err is set
	err   error
}

// do claims one. Where ctx ends before the answer it may have been claimed, or will be.
func (q *claims) do(ctx context.Context, c OneClaim) error {
	call := &claimCall{claim: c, lead: make(chan struct{}), done: make(chan struct{})}
	if !q.enter(call) {
		select {
		case <-call.done:
			return call.err
		case <-call.lead:
		case <-ctx.Done():
			if !q.leave(call) {
				return ctx.Err()
			}
		}
	}
	list := q.take(call)
	all, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimsTimeout) // the claims of others do not end with this one
	q.send(all, list)
	cancel()
	for _, c := range list {
		close(c.done)
	}
	q.passOn()
	return call.err
}

// enter has a call wait, and reports whether it leads.
func (q *claims) enter(call *claimCall) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, call)
	if q.leaders < claimsFlying {
		q.leaders++
		call.leads = true
	}
	return call.leads
}

// leave takes a call back that nobody has sent. It reports whether the call leads: then it cannot.
func (q *claims) leave(call *claimCall) (leads bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !call.leads {
		q.waiting = slices.DeleteFunc(q.waiting, func(w *claimCall) bool { return w == call })
	}
	return call.leads
}

// take returns what the one that leads is to send: itself and who does not lead.
func (q *claims) take(leader *claimCall) (list []*claimCall) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list = append(list, leader)
	q.waiting = slices.DeleteFunc(q.waiting, func(w *claimCall) bool {
		if w == leader {
			return true
		}
		if w.leads || len(list) == MaxClaims {
			return false
		}
		list = append(list, w)
		return true
	})
	return list
}

// passOn makes another call lead. As long as there are calls that do not lead one does, and comes here.
func (q *claims) passOn() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.waiting {
		if !w.leads {
			w.leads = true
			close(w.lead)
			return
		}
	}
	q.leaders--
}

// sendClaims sets what became of each.
func (c *Client) sendClaims(ctx context.Context, list []*claimCall) {
	if len(list) == 1 {
		_, list[0].err = c.Claim(ctx, list[0].claim.ID, list[0].claim.ClaimRequest)
		return
	}
	req := ClaimsRequest{Claims: make([]OneClaim, len(list))}
	for i, call := range list {
		req.Claims[i] = call.claim
	}
	var reply ClaimsReply
	err := c.call(ctx, http.MethodPost, "/v1/claims", nil, req, &reply)
	if status := api.StatusOf(err); status == http.StatusNotFound || status == http.StatusRequestEntityTooLarge { // a node of an earlier version, or long rules of networks
		for _, call := range list {
			_, call.err = c.Claim(ctx, call.claim.ID, call.claim.ClaimRequest)
		}
		return
	}
	if err == nil && len(reply.Errors) != len(list) {
		err = fmt.Errorf("%s: %d answers to %d claims", c.addr, len(reply.Errors), len(list))
	}
	for i, call := range list {
		if call.err = err; err == nil && reply.Errors[i] != nil {
			call.err = reply.Errors[i]
		}
	}
}

// ClaimTogether is Claim, in one request with others that come at the same time. It is for claims that take the node no time: who claims with an environment, for which the
// node starts servers anew, would have the others wait. Where ctx ends first it may have been claimed all the same.
func (c *Client) ClaimTogether(ctx context.Context, id api.SandboxID, req ClaimRequest) error {
	return c.claims.do(ctx, OneClaim{ID: id, ClaimRequest: req})
}
