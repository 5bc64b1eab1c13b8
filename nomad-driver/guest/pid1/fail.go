package pid1

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// fail makes an error that crosses the socket.
func fail(code, format string, args ...any) *frame.ErrorBody {
	return &frame.ErrorBody{Code: code, Message: fmt.Sprintf(format, args...)}
}

// failBody makes any error one that crosses the socket.
func failBody(err error) *frame.ErrorBody {
	var body *frame.ErrorBody
	if errors.As(err, &body) {
		return body
	}
	return fail(guest.CodeInternal, "%v", err)
}

// failFile explains what the kernel refused to do to path.
func failFile(verb, path string, err error) *frame.ErrorBody {
	var body *frame.ErrorBody
	if errors.As(err, &body) {
		return body
	}
	code := guest.CodeInternal
	var errno unix.Errno
	if errors.As(err, &errno) {
		switch errno {
		case unix.ENOENT:
			code = guest.CodeNotFound
		case unix.EACCES, unix.EPERM, unix.EROFS:
			code = guest.CodePermission
		case unix.EEXIST, unix.ENOTEMPTY:
			code = guest.CodeExists
		case unix.ENOTDIR:
			code = guest.CodeNotDir
		case unix.EISDIR:
			code = guest.CodeIsDir
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
			code = guest.CodeNoSpace
		case unix.EXDEV:
			code = guest.CodeCrossDevice
		case unix.ELOOP:
			code = guest.CodeLoop
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN:
			code = guest.CodeLimit
		case unix.EINVAL, unix.ENAMETOOLONG, unix.ENXIO, unix.EBUSY, unix.ETXTBSY:
			code = guest.CodeBadRequest
		}
		err = errno
	}
	return fail(code, "%s %q: %v", verb, path, err)
}
