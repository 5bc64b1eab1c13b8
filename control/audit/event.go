package audit

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/redact"
)

// Event is one thing that happened. Its Index, Time and ID are the log's to give; an ID that is there stays.
type Event = api.AuditEvent

// Results of events.
const (
	ResultOK      = "ok"
	ResultStarted = "started" // of a stream; another event tells its end
	ResultDenied  = "denied"  // a security decision: 401, 403, 429
	ResultFailed  = "failed"  // nothing was changed, or nobody knows: the details have the status
)

// Limits of an event. What is longer is cut, and marked so: a record that is refused would be a way not to be recorded.
const (
	maxWord        = 128  // bytes of tenant, action, resource, result, source, request and id
	maxText        = 512  // bytes of user, resource id, agent and a detail
	maxDetails     = 16   // pairs
	maxDetailName  = 64   // bytes
	maxBody        = 8192 // bytes of an encoded event with all of its fields at their limits: see TestEvent_fitsAtItsLimits
	maxDetailBytes = 4096 // of all details together
)

// clean returns e as it is stored: its texts cut to their limits, valid UTF-8, and with secrets masked.
func clean(e Event) Event {
	for _, s := range []*string{&e.ID, &e.Tenant, &e.Action, &e.Resource, &e.Result, &e.Source, &e.Request} {
		*s = text(*s, maxWord)
	}
	for _, s := range []*string{&e.User, &e.ResourceID, &e.Agent} {
		*s = text(*s, maxText)
	}
	if e.ID == "" {
		e.ID = rand.Text()
	}
	if len(e.Details) == 0 {
		e.Details = nil
		return e
	}
	names := slices.Sorted(maps.Keys(e.Details))
	details := make(map[string]string, len(names))
	left := maxDetailBytes
	for _, name := range names {
		k, v := text(name, maxDetailName), text(e.Details[name], maxText)
		if left -= len(k) + len(v); left < 0 || len(details) == maxDetails-1 && len(names) > maxDetails {
			details["…"] = fmt.Sprintf("%d more", len(names)-len(details))
			break
		}
		details[k] = v
	}
	e.Details = details
	return e
}

func text(s string, limit int) string {
	if s == "" {
		return ""
	}
	s = redact.Text(s)
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if len(s) <= limit {
		return s
	}
	n := limit - len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
