package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem/filesystemconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process/processconnect"
)

// Processes and files are envd's protocol, as the E2B clients speak it, below a sandbox's own path: there the API key lets a call in, by the
// caller's roles, and the sandbox's token is not needed.

// maxMessage bounds one message of a sandbox's envd, in bytes: a large folder's list.
const maxMessage = 64 << 20

func (c *Client) processes(id SandboxID, set http.Header) processconnect.ProcessClient {
	return processconnect.NewProcessClient(caller{c, set}, c.base.String()+sandboxPath(id, "/envd"), connect.WithReadMaxBytes(maxMessage))
}

func (c *Client) filesystem(id SandboxID, user string) filesystemconnect.FilesystemClient {
	return filesystemconnect.NewFilesystemClient(caller{c, asUser(user)}, c.base.String()+sandboxPath(id, "/envd"), connect.WithReadMaxBytes(maxMessage))
}

func asUser(user string) http.Header {
	h := http.Header{}
	if user != "" {
		h.Set(UserHeader, user)
	}
	return h
}

// caller is a connect.HTTPClient that shows who calls. An answer of the service itself, which is none of the protocol's, is an *Error.
type caller struct {
	c   *Client
	set http.Header
}

func (a caller) Do(r *http.Request) (*http.Response, error) {
	for name, vs := range a.set {
		r.Header[name] = vs
	}
	r.Header.Set("User-Agent", a.c.agent)
	r.Header.Set(ClientVersionHeader, version.Version)
	r.Header.Set(APIVersionHeader, strconv.Itoa(version.API))
	if a.c.key != "" {
		r.Header.Set("X-API-Key", a.c.key)
	}
	resp, err := a.c.http.Do(r)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	b, rerr := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	_ = resp.Body.Close()
	var own Error
	if rerr == nil && json.Unmarshal(b, &own) == nil && own.Message != "" { // the protocol's code is a word, ours a number
		own.Code = resp.StatusCode
		return nil, &own
	}
	resp.Body = io.NopCloser(strings.NewReader(string(b)))
	return resp, nil
}

// callError turns an error of a call into an *Error where it is an answer.
func (c *Client) callError(ctx context.Context, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var said *connect.Error
	if errors.As(err, &said) && connect.IsWireError(err) {
		word := said.Meta().Get(wordHeader)
		status, ok := wordStatus[word]
		if !ok {
			status = callStatus[said.Code()]
		}
		if status == 0 {
			status = http.StatusInternalServerError
		}
		if word == "" {
			word = said.Code().String()
		}
		return &Error{Code: status, ErrorCode: word, Message: said.Message()}
	}
	if said != nil {
		err = said.Unwrap()
	}
	return c.unreachable(ctx, err)
}

// wordStatus maps the sandbox's own words for errors to a status.
var wordStatus = map[string]int{
	"bad_request":       http.StatusBadRequest,
	"version_mismatch":  http.StatusBadRequest,
	"process_not_found": http.StatusNotFound,
	"permission_denied": http.StatusForbidden,
	"already_exists":    http.StatusConflict,
	"limit_reached":     http.StatusTooManyRequests,
	CodeNotFound:        http.StatusNotFound,
	CodeCommand:         http.StatusBadRequest,
	CodeCwd:             http.StatusBadRequest,
	CodeUnknownUser:     http.StatusBadRequest,
	CodeNoSpace:         http.StatusInsufficientStorage,
}

var callStatus = map[connect.Code]int{
	connect.CodeCanceled:           http.StatusRequestTimeout,
	connect.CodeInvalidArgument:    http.StatusBadRequest,
	connect.CodeDeadlineExceeded:   http.StatusRequestTimeout,
	connect.CodeNotFound:           http.StatusNotFound,
	connect.CodeAlreadyExists:      http.StatusConflict,
	connect.CodePermissionDenied:   http.StatusForbidden,
	connect.CodeResourceExhausted:  http.StatusTooManyRequests,
	connect.CodeFailedPrecondition: http.StatusConflict,
	connect.CodeUnimplemented:      http.StatusNotImplemented,
	connect.CodeUnavailable:        http.StatusServiceUnavailable,
	connect.CodeUnauthenticated:    http.StatusUnauthorized,
}
