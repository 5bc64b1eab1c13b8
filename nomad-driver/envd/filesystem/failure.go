package filesystem

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

const notDirCode = guest.CodeNotDir

// text is an error that is nothing but its words.
type text string

func (t text) Error() string { return string(t) }

// failure is the one place where errors become answers of this service. path is what the request was about.
func failure(s scope.Sandbox, path string, err error) error {
	var (
		known   *connect.Error
		user    *place.UserError
		badPath *place.PathError
		body    *frame.ErrorBody
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &user):
		return connect.NewError(connect.CodeUnauthenticated, user)
	case errors.As(err, &badPath):
		return connect.NewError(connect.CodeInvalidArgument, badPath)
	case errors.As(err, &body):
		return reported(path, body)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	case place.Ended(s):
		return ended(s)
	case errors.Is(err, guest.ErrBadAnswer):
		return connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("sandbox %s does not answer: %w", s.ID, place.Cause(err)))
}

func ended(s scope.Sandbox) error {
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("sandbox %s has ended", s.ID))
}

func reported(path string, body *frame.ErrorBody) error {
	if place.TooOld(body) {
		return connect.NewError(connect.CodeUnimplemented, text("the sandbox was made before this operation was known: "+body.Message))
	}
	var code connect.Code
	said := body.Message
	switch body.Code {
	case guest.CodeNotFound:
		code, said = connect.CodeNotFound, place.Missing(path)
	case guest.CodeNotDir:
		code, said = connect.CodeInvalidArgument, place.NotDirectory(path)
	case guest.CodeIsDir:
		code, said = connect.CodeInvalidArgument, place.IsDirectory(path)
	case guest.CodePermission:
		code = connect.CodePermissionDenied
	case guest.CodeExists:
		code = connect.CodeAlreadyExists
	case guest.CodeBadRequest, guest.CodeLoop, guest.CodeNetwork, guest.CodeCrossDevice:
		code = connect.CodeInvalidArgument
	case guest.CodeNoSpace, guest.CodeLimit:
		code = connect.CodeResourceExhausted
	case guest.CodeUnknownUser:
		code = connect.CodeUnauthenticated
	default:
		code = connect.CodeInternal
	}
	e := connect.NewError(code, text(said))
	e.Meta().Set(answer.WordHeader, body.Code)
	return e
}
