package node

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/store"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// apiError is the one place where errors become answers of the API. Whoever speaks to a node is trusted (root, or a
// certificate of the CA), so an internal error tells its cause.
func apiError(err error) *api.Error {
	var (
		e       *api.Error
		body    *frame.ErrorBody
		tooLong *http.MaxBytesError
	)
	switch stored := storeError(err); {
	case stored != nil:
		return stored
	case errors.As(err, &e):
		return &api.Error{Code: e.Code, ErrorCode: e.ErrorCode, Message: err.Error()}
	case errors.As(err, &body):
		g := nodeapi.GuestError(body)
		g.Message = err.Error()
		return g
	case errors.As(err, &tooLong):
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "the body is larger than %d bytes", tooLong.Limit)
	case errors.Is(err, guest.ErrParked):
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "%v", err)
	case errors.Is(err, store.ErrNotFound):
		return api.Errorf(http.StatusNotFound, api.CodeUnknownTemplate, "%v", err)
	case errors.Is(err, store.ErrInUse):
		return api.Errorf(http.StatusConflict, api.CodeConflict, "%v", err)
	case errors.Is(err, store.ErrInvalid):
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "%v", err)
	case errors.Is(err, unpack.ErrLimit):
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "%v", err)
	case errors.Is(err, errNoIDRange):
		return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity, "%v", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unpack.ErrNoSpace), errors.Is(err, unix.EDQUOT):
		return api.Errorf(http.StatusInsufficientStorage, api.CodeNoSpace, "%v", err)
	case errors.Is(err, cgroup.ErrUnsupported), errors.Is(err, disk.ErrUnsupported):
		return api.Errorf(http.StatusNotImplemented, api.CodeUnsupported, "%v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(http.StatusGatewayTimeout, api.CodeUnavailable, "%v", err)
	case errors.Is(err, context.Canceled):
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "%v", err)
	}
	return api.Errorf(http.StatusInternalServerError, api.CodeInternal, "%v", err)
}

// guestGone turns an error of a conversation with a sandbox that has ended meanwhile into one that says so.
func guestGone(b *box, err error) error {
	if err == nil {
		return nil
	}
	var body *frame.ErrorBody
	if errors.As(err, &body) || errors.Is(err, context.Canceled) {
		return err
	}
	if sb := b.view(); sb.State == nodeapi.StateStopped {
		return notRunning(sb)
	}
	return err
}

func notRunning(sb nodeapi.Sandbox) *api.Error {
	return api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s is %s", sb.ID, sb.State)
}

func notFound(id api.SandboxID) *api.Error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "no sandbox %s on this node", id)
}

func invalid(format string, args ...any) *api.Error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}
