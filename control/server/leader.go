package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/forward"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
)

// handOverTime is how long calls that are under way hold up the end of a leadership. Those that come meanwhile wait at the other servers,
// for longer than that.
const handOverTime = 2 * time.Second

// bring has the server that leads answer, unless this one does, or the caller wants an answer from this server's own tables. here says that this
// server is to answer.
func (s *Server) bring(rt *route, w http.ResponseWriter, r *http.Request) (here bool, err error) {
	if stale, err := asksStale(rt, r); err != nil || stale {
		if err == nil {
			err = s.sayAge(w)
		}
		return err == nil, err
	}
	ctx := r.Context()
	if rt.stream {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.closing, cancel)()
	}
	r.Header.Set(api.RequestIDHeader, requestID(r)) // one request, one id
	sent := r.WithContext(ctx)
	here, err = s.cfg.Leader.Bring(w, sent)
	r.Body = sent.Body
	if err != nil && s.closing.Err() != nil && errors.Is(err, context.Canceled) {
		err = notReady(errors.New("it stops"))
	}
	return here, err
}

// staleable reports whether the route is a read that may be answered from tables that lag.
func (rt *route) staleable() bool {
	return strings.HasPrefix(rt.pattern, "GET ") && !rt.stream && !rt.local && !rt.open && rt.needs.Action == rbac.Read && rt.needs.Resource != rbac.System
}

// asksStale reports whether a read may be answered from the tables of whichever server it came to: its parameter stale says so.
func asksStale(rt *route, r *http.Request) (bool, error) {
	if !rt.staleable() || r.URL.RawQuery == "" {
		return false, nil
	}
	q, err := parseQuery(r)
	if err != nil {
		return false, err
	}
	vs, asked := q.values["stale"]
	if !asked {
		return false, nil
	}
	if len(vs) > 1 || vs[0] != "" && vs[0] != "true" && vs[0] != "false" {
		return false, invalid("stale: %.20q is neither true nor false", vs)
	}
	return vs[0] != "false", nil
}

// maxAge is how old the tables of a server that is cut off may be, for it to answer from them: they know nothing of keys and roles that were taken
// since.
const maxAge = time.Minute

// sayAge says in the answer how old it may be.
func (s *Server) sayAge(w http.ResponseWriter) error {
	age, ok := s.cfg.Peers.Age()
	if !ok || age > maxAge {
		return notReady(fmt.Errorf("it has not heard from the control server that leads within %s", maxAge))
	}
	up := age + time.Millisecond - 1 // only the server that leads says 0
	w.Header().Set(api.AgeHeader, strconv.FormatInt(up.Milliseconds(), 10))
	return nil
}

// serveOthers serves what other servers send. nil: there are none.
func (s *Server) serveOthers(wg *sync.WaitGroup, failed chan<- error) *http.Server {
	if s.cfg.Peers == nil || s.cfg.Leader == nil {
		return nil
	}
	l := s.cfg.Peers.Requests()
	if l == nil {
		return nil
	}
	srv := &http.Server{
		Handler: s.cfg.Leader.Receive(s.handler), ReadHeaderTimeout: s.cfg.HeaderTimeout, WriteTimeout: s.cfg.CallTimeout + s.cfg.WriteTimeout,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: forward.MaxHeaderBytes, ConnContext: state.ConnContext,
		ErrorLog: s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve other servers on %s: %w", l.Addr(), err)
		}
	})
	return srv
}

// handOver gives the leadership away, where this server has it. New requests of others it refuses from here on: they wait for the next leader. Those
// under way have a moment to end first: what they have yet to record only a leader can.
func (s *Server) handOver() {
	if s.cfg.Leader == nil {
		return
	}
	s.cfg.Leader.Leave()
	s.here.wait(handOverTime)
	if err := s.cfg.Peers.HandOver(); err != nil {
		s.log.Warn(err.Error())
	}
}

// calls counts those that are under way.
type calls struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n is 0, where somebody waits
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// wait returns when no call is under way, or after d.
func (c *calls) wait(d time.Duration) {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}
