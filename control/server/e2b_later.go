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
