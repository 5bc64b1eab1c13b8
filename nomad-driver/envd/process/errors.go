package process

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// failed turns an error of the guest into one of the protocol.
func failed(err error) error {
	var body *frame.ErrorBody
	switch {
	case errors.As(err, &body):
		e := connect.NewError(codeOf(body.Code), errors.New(body.Message))
		e.Meta().Set(answer.WordHeader, body.Code)
		return e
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the sandbox does not answer: %w", place.Cause(err)))
}

func codeOf(word string) connect.Code {
	switch word {
	case guest.CodeNoProcess, guest.CodeNotFound:
		return connect.CodeNotFound
	case guest.CodeBadRequest, guest.CodeBadCwd, guest.CodeBadCommand, guest.CodeNotDir, guest.CodeIsDir, guest.CodeLoop:
		return connect.CodeInvalidArgument
	case guest.CodeUnknownUser:
		return connect.CodeUnauthenticated
	case guest.CodePermission:
		return connect.CodePermissionDenied
	case guest.CodeExists:
		return connect.CodeAlreadyExists
	case guest.CodeLimit, guest.CodeNoSpace:
		return connect.CodeResourceExhausted
	}
	return connect.CodeInternal
}
