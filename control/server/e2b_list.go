package server

import (
	"net/http"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// e2bListV1 is GET /sandboxes: all running sandboxes at once.
func (s *Server) e2bListV1(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	meta, err := metadataFilter(q.str("metadata", maxQueryBytes))
	if err != nil || q.err != nil {
		return firstOf(q.err, err)
	}
	f := state.Filter{Tenant: tenant(r), Metadata: meta, States: []state.SandboxState{state.Running}}
	out := []api.ListedSandbox{}
	p := state.Page{Limit: state.MaxPage}
	for {
		l, err := s.cfg.Lifecycle.List(r.Context(), f, state.Descending, p)
		if err != nil {
			return err
		}
		l = s.seen(r, l)
		for _, sb := range l.Sandboxes {
			out = append(out, e2bListed(sb))
		}
		if p.Token = l.NextToken; p.Token == "" {
			break
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

var allStates = []state.SandboxState{state.Starting, state.Running, state.Paused, state.Stopping, state.Stopped, state.Failed, state.Lost}

// e2bListV2 is GET /v2/sandboxes: a page of the running and the paused ones. Beyond the contract, soulbox=true shows those in other
// states too, in larger pages, and all that is told of them.
func (s *Server) e2bListV2(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	more := q.boolean("soulbox")
	states, limit := []state.SandboxState{state.Running, state.Paused}, int64(maxE2BLimit)
	if more {
		states, limit = allStates, state.MaxPage
	}
	meta, err := metadataFilter(q.str("metadata", maxQueryBytes))
	f := state.Filter{
		Tenant: tenant(r), Metadata: meta, States: q.states("state", states...),
		Template: q.str("template", state.MaxTemplateName), StartedAfter: q.time("startedAfter"),
	}
	order := q.order("order")
	p := state.Page{
		Limit: int(q.integer("limit", maxE2BLimit, 1, limit)),
		Token: q.str("nextToken", maxTokenBytes),
	}
	if err != nil || q.err != nil {
		return firstOf(q.err, err)
	}
	if len(f.States) == 0 && !more { // else all but the ended ones
		f.States = []state.SandboxState{state.Running, state.Paused}
	}
	l, err := s.cfg.Lifecycle.List(r.Context(), f, order, p)
	if err != nil {
		return err
	}
	l = s.seen(r, l)
	out := make([]api.ListedSandbox, 0, len(l.Sandboxes))
	for _, sb := range l.Sandboxes {
		one := e2bListed(sb)
		if more {
			view := sandboxView(sb)
			one.SoulBox = &view
		}
		out = append(out, one)
	}
	if l.NextToken != "" { // clients page on until it is missing
		w.Header().Set("X-Next-Token", l.NextToken)
	}
	w.Header().Set("X-Total-Running", strconv.Itoa(l.TotalRunning))
	writeJSON(w, http.StatusOK, out)
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
