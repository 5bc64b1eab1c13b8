package api

import (
	"errors"
	"net/http"
)

// StatusOf returns the HTTP status that err maps to: that of an *Error anywhere in its chain, else 500. nil is 200.
func StatusOf(err error) int {
	if err == nil {
		return http.StatusOK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return http.StatusInternalServerError
}

// CodeOf returns the ErrorCode of an *Error anywhere in err's chain, or "".
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.ErrorCode
	}
	return ""
}

// AsError returns err as an *Error: the one in its chain with err's whole message, else an internal error that does not
// tell its cause to the client.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{Code: e.Code, ErrorCode: e.ErrorCode, Message: err.Error()}
	}
	return Errorf(http.StatusInternalServerError, CodeInternal, "internal error")
}
