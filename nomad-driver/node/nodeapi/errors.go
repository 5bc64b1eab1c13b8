package nodeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// guestCodes maps the words of a guest's errors to the status and the word of the API.
var guestCodes = map[string]struct {
	status int
	code   string
}{
	guest.CodeBadRequest:  {http.StatusBadRequest, api.CodeInvalid},
	guest.CodeVersion:     {http.StatusBadRequest, api.CodeVersion},
	guest.CodeNoProcess:   {http.StatusNotFound, guest.CodeNoProcess},
	guest.CodeNotFound:    {http.StatusNotFound, api.CodeNotFound},
	guest.CodePermission:  {http.StatusForbidden, guest.CodePermission},
	guest.CodeExists:      {http.StatusConflict, guest.CodeExists},
	guest.CodeNotDir:      {http.StatusBadRequest, guest.CodeNotDir},
	guest.CodeIsDir:       {http.StatusBadRequest, guest.CodeIsDir},
	guest.CodeNoSpace:     {http.StatusInsufficientStorage, api.CodeNoSpace},
	guest.CodeLoop:        {http.StatusBadRequest, guest.CodeLoop},
	guest.CodeCrossDevice: {http.StatusBadRequest, guest.CodeCrossDevice},
	guest.CodeNetwork:     {http.StatusBadRequest, guest.CodeNetwork},
	guest.CodeUnknownUser: {http.StatusBadRequest, api.CodeUnknownUser},
	guest.CodeBadCwd:      {http.StatusBadRequest, api.CodeCwd},
	guest.CodeBadCommand:  {http.StatusBadRequest, api.CodeCommand},
	guest.CodeLimit:       {http.StatusTooManyRequests, guest.CodeLimit},
	guest.CodeInternal:    {http.StatusInternalServerError, api.CodeInternal},
}

// GuestError returns an error of a guest, or one that travelled over a stream, as an *api.Error. The code of an answer of
// the API itself, which a node puts into an Error frame, is kept.
func GuestError(e *frame.ErrorBody) *api.Error {
	if c, ok := guestCodes[e.Code]; ok {
		return &api.Error{Code: c.status, ErrorCode: c.code, Message: e.Message}
	}
	status := http.StatusInternalServerError
	switch e.Code {
	case api.CodeNotRunning, api.CodeConflict:
		status = http.StatusConflict
	case api.CodeInvalid, api.CodeCommand, api.CodeCwd:
		status = http.StatusBadRequest
	case api.CodeUnavailable:
		status = http.StatusServiceUnavailable
	}
	return &api.Error{Code: status, ErrorCode: e.Code, Message: e.Message}
}

func streamError(err error) error {
	var body *frame.ErrorBody
	if errors.As(err, &body) {
		return GuestError(body)
	}
	return err
}

func decodeFrame(f frame.Frame, v any) error {
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("decode frame of type %d: %w", f.Type, err)
	}
	return nil
}
