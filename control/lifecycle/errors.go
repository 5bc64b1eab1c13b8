package lifecycle

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

func notFound(id api.SandboxID) error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s does not exist", id)
}

func notRunning(s state.Sandbox) error {
	return api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s", s.ID, s.State)
}

// stateError maps the errors of package state to those of the API.
func stateError(id api.SandboxID, err error) error {
	var limit *state.LimitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &limit):
		return invalid("%s", limit.Error())
	case errors.Is(err, state.ErrToken):
		return invalid("nextToken is not one that this list gave")
	case errors.Is(err, state.ErrNotFound):
		return notFound(id)
	case errors.Is(err, state.ErrState):
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "%s", err.Error())
	case errors.Is(err, state.ErrConflict), errors.Is(err, state.ErrExists):
		return api.Errorf(http.StatusConflict, api.CodeConflict, "%s", err.Error())
	case errors.Is(err, state.ErrNoLeader), errors.Is(err, state.ErrUnknownOutcome):
		return fmt.Errorf("%w: %w", api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"the control service has no leader at the moment"), err)
	}
	return err
}
