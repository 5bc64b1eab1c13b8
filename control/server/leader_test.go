package server

import (
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// otherLeads is a cluster in which another server leads, and answers 418.
type otherLeads struct {
	age   time.Duration
	known bool
	err   error
	asked int
}

func (o *otherLeads) Bring(w http.ResponseWriter, _ *http.Request) (bool, error) {
	o.asked++
	if o.err == nil {
		w.WriteHeader(http.StatusTeapot)
	}
	return false, o.err
}

func (*otherLeads) Receive(next http.Handler) http.Handler { return next }
func (*otherLeads) Leave()                                 {}
func (*otherLeads) Requests() net.Listener                 { return nil }
func (o *otherLeads) Age() (time.Duration, bool)           { return o.age, o.known }
func (*otherLeads) HandOver() error                        { return nil }

func TestLeader_whoAnswers(t *testing.T) {
	o := &otherLeads{age: 12 * time.Millisecond, known: true}
	h := newHarness(t, func(c *Config) { c.Leader, c.Peers = o, o })
	for _, tc := range []struct {
		method, path string
		status       int
		age          string
	}{
		{"GET", "/v2/sandboxes", http.StatusTeapot, ""},
		{"GET", "/v2/sandboxes?stale", http.StatusOK, "12"},
		{"GET", "/v2/sandboxes?stale=true", http.StatusOK, "12"},
		{"GET", "/v2/sandboxes?stale=false", http.StatusTeapot, ""},
		{"GET", "/v2/sandboxes?stale=maybe", http.StatusBadRequest, ""},
		{"POST", "/v2/sandboxes?stale", http.StatusTeapot, ""},
		{"GET", "/v1/events?stale", http.StatusTeapot, ""},
		{"DELETE", "/sandboxes/" + string(testID), http.StatusTeapot, ""},
		{"GET", "/v1/health", http.StatusOK, ""},
		{"GET", "/v1/version", http.StatusOK, ""},
		{"GET", "/v1/metrics", http.StatusOK, ""},
		{"GET", "/v1/nothing", http.StatusNotFound, ""},
	} {
		a := h.do(tc.method, tc.path, "")
		must.Eq(t, tc.status, a.status, must.Sprint(tc.method, " ", tc.path, " ", a.body))
		must.Eq(t, tc.age, a.header.Get(api.AgeHeader), must.Sprint(tc.path))
	}
}

func TestLeader_noStaleAnswerFromOneThatIsCutOff(t *testing.T) {
	for name, o := range map[string]*otherLeads{"for long": {age: 2 * maxAge, known: true}, "always": {}} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, func(c *Config) { c.Leader, c.Peers = o, o })
			h.do("GET", "/v2/sandboxes?stale", "").mustFail(t, http.StatusServiceUnavailable, codeNotReady)
		})
	}
}

func TestLeader_nobodyIsATimeToComeAgain(t *testing.T) {
	for _, err := range []error{state.ErrNoLeader, state.ErrUnknownOutcome} {
		o := &otherLeads{err: errors.Join(err)}
		h := newHarness(t, func(c *Config) { c.Leader, c.Peers = o, o })
		a := h.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
		a.mustFail(t, http.StatusServiceUnavailable, api.CodeUnavailable)
		must.Eq(t, "1", a.header.Get("Retry-After"))
		must.MapLen(t, 0, h.life.sandboxes)
	}
}

func TestCalls_waitUntilNoneIsUnderWay(t *testing.T) {
	var c calls
	c.wait(time.Hour) // none
	c.begin()
	c.begin()
	c.wait(time.Millisecond) // for so long
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.wait(time.Hour)
	}()
	c.end()
	c.end()
	<-done
}
