package server

import (
	"net/http"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// parallelKills is how many sandboxes of a tenant are ended at a time.
const parallelKills = 16

// e2bAdminKill is POST /admin/teams/{tenant}/sandboxes/kill: it ends all sandboxes of a tenant, paused ones too.
func (s *Server) e2bAdminKill(w http.ResponseWriter, r *http.Request) error {
	if err := s.mustEverywhere(r, requestOf(r).access.needs); err != nil {
		return err
	}
	filter := state.Filter{Tenant: tenant(r), States: []state.SandboxState{state.Running, state.Paused}}
	var killed, failed atomic.Int64
	for page := (state.Page{Limit: state.MaxPage}); ; {
		l, err := s.cfg.Lifecycle.List(r.Context(), filter, state.Ascending, page)
		if err != nil {
			return err
		}
		var g errgroup.Group
		g.SetLimit(parallelKills)
		for _, sb := range l.Sandboxes {
			g.Go(func() error {
				switch err := s.cfg.Lifecycle.Delete(r.Context(), sb.Tenant, sb.ID); {
				case err == nil:
					killed.Add(1)
				case !api.IsNotFound(err): // else it has ended by itself
					failed.Add(1)
				}
				return nil
			})
		}
		_ = g.Wait() // failures are counted
		if page.Token = l.NextToken; page.Token == "" {
			break
		}
	}
	writeJSON(w, http.StatusOK, api.KilledSandboxes{Killed: killed.Load(), Failed: failed.Load()})
	return nil
}

// e2bRunningCounts is GET /admin/sandboxes/running-counts: the tenants that have any.
func (s *Server) e2bRunningCounts(w http.ResponseWriter, r *http.Request) error {
	if err := firstOf(s.needPolicy(), s.mustEverywhere(r, requestOf(r).access.needs)); err != nil {
		return err
	}
	all, err := s.cfg.Tenants.Tenants()
	if err != nil {
		return err
	}
	out := map[string]int{}
	for _, t := range all {
		l, err := s.cfg.Lifecycle.List(r.Context(), state.Filter{Tenant: t.ID, States: []state.SandboxState{state.Running}}, state.Ascending, state.Page{Limit: 1})
		if err != nil {
			return err
		}
		if l.TotalRunning > 0 {
			out[t.ID] = l.TotalRunning
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// e2bAdminCreateKey is POST /admin/teams/{tenant}/api-keys.
func (s *Server) e2bAdminCreateKey(w http.ResponseWriter, r *http.Request) error {
	if err := s.mustEverywhere(r, requestOf(r).access.needs); err != nil {
		return err
	}
	return s.e2bCreateKey(w, r)
}

// e2bAdminDeleteKey is DELETE /admin/teams/{tenant}/api-keys/{key}.
func (s *Server) e2bAdminDeleteKey(w http.ResponseWriter, r *http.Request) error {
	if err := s.mustEverywhere(r, requestOf(r).access.needs); err != nil {
		return err
	}
	return s.e2bDeleteKey(w, r)
}
