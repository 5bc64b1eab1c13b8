// Package api is SoulBox's public Go client and the types of its API.
//
// It owns the wire types, ids and errors that clients, the control service, the Terraform provider and the Vault plugin
// share, and the HTTP client. It never imports another package of the project except the frame codec, envd's messages
// and its own version package, and no client of the HashiCorp stack.
package api

import (
	"fmt"
	"net/http"
)

// Error is the one error shape of the API: {"code": <http status>, "message": "...", "error_code": "snake_case"}.
type Error struct {
	Code      int    `json:"code"` // HTTP status
	Message   string `json:"message"`
	ErrorCode string `json:"error_code,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error.
func Errorf(code int, errorCode, format string, args ...any) *Error {
	return &Error{Code: code, ErrorCode: errorCode, Message: fmt.Sprintf(format, args...)}
}

// IsNotFound reports whether err is an API error with status 404.
func IsNotFound(err error) bool { return StatusOf(err) == http.StatusNotFound }

// Values of Error.ErrorCode that more than one place makes or checks.
const (
	CodeInvalid         = "invalid_argument"
	CodeUnauthorized    = "unauthorized"
	CodeForbidden       = "forbidden"
	CodeSuspended       = "tenant_suspended"
	CodeThrottled       = "throttled"
	CodeNotFound        = "not_found"
	CodeConflict        = "conflict"
	CodeUnknownTemplate = "template_not_found"
	CodeCommand         = "command_not_found"
	CodeCwd             = "cwd_not_found"
	CodeUnknownUser     = "unknown_user"
	CodeNoSpace         = "no_space"
	CodeCapacity        = "sandbox_capacity_unavailable"
	CodeUnsupported     = "unsupported_on_node"
	CodeVersion         = "version_incompatible"
	CodeNotRunning      = "sandbox_not_running"
	CodeUnavailable     = "unavailable"
	CodeQuota           = "quota_exceeded"
	CodeRate            = "rate_limited"
	CodeTooLarge        = "too_large"
	CodeInternal        = "internal"
)
