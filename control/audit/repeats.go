package audit

import (
	"maps"
	"strconv"
)

// maxRepeats bounds the refusals that are told apart within Config.RepeatEvery: whoever is refused must not be able to fill the log.
const maxRepeats = 1024

// repeatKey is what makes two refusals the same.
type repeatKey struct{ tenant, user, action, resource, result, source, status string }

// repeats counts refusals that were seen already. It is behind the log's mu.
type repeats struct {
	seen  map[repeatKey]*repeat
	other int // of those beyond maxRepeats
}

type repeat struct {
	event Event
	more  int // after the first
}

// Deny notes a refusal, without waiting. The same one again is counted, and told once each Config.RepeatEvery.
func (l *Log) Deny(e Event) {
	e = clean(e)
	k := repeatKey{e.Tenant, e.User, e.Action, e.Resource, e.Result, e.Source, e.Details["status"]}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.repeats
	if known := r.seen[k]; known != nil {
		known.more++
		return
	}
	if len(r.seen) >= maxRepeats {
		r.other++
		return
	}
	if r.seen == nil {
		r.seen = map[repeatKey]*repeat{}
	}
	r.seen[k] = &repeat{event: e}
	l.note(&e)
}

// flushRepeats tells how often refusals came again, and forgets them.
func (l *Log) flushRepeats() {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.repeats
	l.repeats = repeats{}
	for _, s := range r.seen {
		if s.more == 0 {
			continue
		}
		e := s.event
		e.ID, e.Request = "", ""
		e.Details = maps.Clone(e.Details)
		if e.Details == nil {
			e.Details = map[string]string{}
		}
		e.Details["repeated"] = strconv.Itoa(s.more)
		e = clean(e)
		l.note(&e)
	}
	if r.other > 0 {
		e := clean(Event{Action: "audit.repeated", Resource: "audit", Result: ResultDenied, User: systemUser, Details: map[string]string{
			"repeated": strconv.Itoa(r.other), "why": "more different refusals than are told apart",
		}})
		l.note(&e)
	}
}
