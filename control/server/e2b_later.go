package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
)

// later answers the endpoints of the contract that this version does not have, in the contract's shape: a client can tell that
// from a mistake of its own.
func later(what string) handle {
	return func(http.ResponseWriter, *http.Request) error {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "%s not served by this version", what)
	}
}

// laterFor is later for something of a sandbox: one that is not the caller's is not found, as everywhere.
func (s *Server) laterFor(what string) handle {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := sandboxID(r)
		if err != nil {
			return err
		}
		sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
		if err != nil {
			return err
		}
		if !e2bVisible(sb.State) {
			return api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s is %s", id, sb.State)
		}
		return later(what)(w, r)
	}
}

// none answers a list of what does not exist yet.
func none(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, []struct{}{})
	return nil
}

// gonePath answers an endpoint that the contract has taken back.
func gonePath(what string) handle {
	return func(http.ResponseWriter, *http.Request) error {
		return api.Errorf(http.StatusGone, codeUnsupported, "%s", what)
	}
}
