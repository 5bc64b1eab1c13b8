package node

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
)

// show answers with what f knows of the sandbox that the path names.
func show[A any](f func(api.SandboxID) (A, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := pathID(r)
		if err != nil {
			return err
		}
		out, err := f(id)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, out)
		return nil
	}
}

// ask answers with what f makes of the sandbox that the path names and of the body.
func ask[Q, A any](f func(api.SandboxID, Q) (A, error)) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, err := pathID(r)
		if err != nil {
			return err
		}
		var req Q
		if err := readJSON(w, r, &req); err != nil {
			return err
		}
		out, err := f(id, req)
		if err != nil {
			return err
		}
		writeJSON(w, http.StatusOK, out)
		return nil
	}
}
