package server

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
)

const (
	ticketTime = 30 * time.Second
	maxTickets = 1000 // of a tenant that are out
)

// tickets let who has one attach to one terminal, once, in place of a key.
type tickets struct {
	mu     sync.Mutex
	words  map[string]ticket
	out    map[string]int // of each tenant
	looked time.Time      // for those that are too old
}

type ticket struct {
	id      api.TerminalID
	caller  auth.Identity
	expires time.Time
}

func newTickets() *tickets { return &tickets{words: map[string]ticket{}, out: map[string]int{}} }

// issue makes a ticket, or returns false where the caller's tenant has too many out. What one tenant has is no matter to another.
func (t *tickets) issue(id api.TerminalID, who auth.Identity, now time.Time) (api.TerminalTicket, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.looked) >= time.Second {
		t.looked = now
		for word, v := range t.words {
			if now.After(v.expires) {
				t.drop(word)
			}
		}
	}
	if t.out[who.Tenant] >= maxTickets {
		return api.TerminalTicket{}, false
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	out := api.TerminalTicket{Ticket: hex.EncodeToString(b[:]), ExpiresAt: now.Add(ticketTime).UTC()}
	t.words[out.Ticket] = ticket{id, who, out.ExpiresAt}
	t.out[who.Tenant]++
	return out, true
}

// redeem takes a ticket in.
func (t *tickets) redeem(word string, id api.TerminalID, now time.Time) (auth.Identity, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.words[word]
	t.drop(word)
	return v.caller, ok && v.id == id && now.Before(v.expires)
}

func (t *tickets) drop(word string) {
	v, ok := t.words[word]
	if !ok {
		return
	}
	delete(t.words, word)
	if t.out[v.caller.Tenant]--; t.out[v.caller.Tenant] <= 0 {
		delete(t.out, v.caller.Tenant)
	}
}

// terminalTicket is POST /v1/terminals/{id}/ticket.
func (s *Server) terminalTicket(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.terminal(r.Context(), tenant(r), r.PathValue("id"))
	if err != nil {
		return err
	}
	out, ok := s.tickets.issue(t.ID, caller(r), time.Now())
	if !ok {
		return api.Errorf(http.StatusTooManyRequests, api.CodeCapacity, "more than %d tickets of this tenant are out", maxTickets)
	}
	writeJSON(w, http.StatusCreated, out)
	return nil
}
