package process

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Start starts a process and sends its events. The process outlives the client; what ends it with the client's deadline is
// PID 1, so that it does so also where the node is gone.
func (s *service) Start(ctx context.Context, req *connect.Request[wire.StartRequest], out *connect.ServerStream[wire.StartResponse]) error {
	box := scope.Of(ctx)
	st, err := startOf(box, req)
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		st.KillAfter = max(time.Until(deadline), 1)
	}
	st.KillOnDetach = req.Header().Get(KillHeader) == "true"
	stream, err := box.Guest.StartAttached(ctx, st)
	if err != nil {
		return s.failedStart(ctx, st, err)
	}
	s.started(box, stream.Process())
	return relay(ctx, stream, keepalive(req.Header()), out.ResponseTrailer(), func(e *wire.ProcessEvent) error {
		return out.Send(&wire.StartResponse{Event: e})
	})
}

// startOf checks a request and translates it.
func startOf(box scope.Sandbox, req *connect.Request[wire.StartRequest]) (guest.Start, error) {
	cfg := req.Msg.GetProcess()
	if cfg.GetCmd() == "" {
		return guest.Start{}, connect.NewError(connect.CodeInvalidArgument, errors.New("process.cmd is empty"))
	}
	user, err := UserOf(req.Header())
	if err != nil {
		return guest.Start{}, err
	}
	st := guest.Start{
		Argv: append([]string{cfg.GetCmd()}, cfg.GetArgs()...), Cwd: cfg.GetCwd(), User: user, Tag: req.Msg.GetTag(),
		Stdin: req.Msg.Stdin == nil || req.Msg.GetStdin(), // older clients know no better than that it is there
	}
	if req.Msg.GetPty() != nil {
		size, err := sizeOf(req.Msg.GetPty())
		if err != nil {
			return guest.Start{}, err
		}
		st.TTY, st.Size, st.Stdin = true, &size, true
	}
	if st.Env, err = environment(box, cfg.GetEnvs()); err != nil {
		return guest.Start{}, err
	}
	n := 0
	for _, list := range [][]string{st.Argv, st.Env} {
		if len(list) > guest.MaxArgs {
			return guest.Start{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("process: more than %d arguments or variables", guest.MaxArgs))
		}
		for _, e := range list {
			if n += len(e) + 1; strings.IndexByte(e, 0) >= 0 {
				return guest.Start{}, connect.NewError(connect.CodeInvalidArgument, errors.New("process: an argument or variable has a NUL byte"))
			}
		}
	}
	if n > guest.MaxArgBytes {
		return guest.Start{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("process: arguments and variables of %d bytes, at most %d", n, guest.MaxArgBytes))
	}
	if len(st.Tag) > guest.MaxTag || strings.IndexByte(st.Cwd, 0) >= 0 {
		return guest.Start{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("tag is longer than %d bytes, or cwd has a NUL byte", guest.MaxTag))
	}
	return st, nil
}

// environment is the request's own variables behind those by which programs know that they are in a sandbox.
func environment(box scope.Sandbox, own map[string]string) ([]string, error) {
	var env []string
	for _, f := range scope.Facts(box.ID, box.Template) {
		env = append(env, f[0]+"="+f[1])
	}
	keys := make([]string, 0, len(own))
	for k := range own {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("process.envs: %.80q is no name of a variable", k))
		}
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		env = append(env, k+"="+own[k])
	}
	return env, nil
}

// failedStart says why nothing was started, in the contract's words.
func (s *service) failedStart(ctx context.Context, st guest.Start, err error) error {
	var body *frame.ErrorBody
	if errors.As(err, &body) && body.Code == guest.CodeUnknownUser {
		e := UnknownUser(st.User)
		e.Meta().Set(answer.WordHeader, body.Code)
		return e
	}
	return failed(err)
}

// UnknownUser is the error for a user that the sandbox does not have.
func UnknownUser(name string) *connect.Error {
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("invalid username: '%s'", name))
}

// UserOf returns the user that a request acts as: the name in its Basic authorization, whose password does not count.
// Without one it is empty: the sandbox's default user.
func UserOf(h http.Header) (string, error) {
	auth := h.Get("Authorization")
	scheme, value, _ := strings.Cut(auth, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", nil // a bearer token or the like is not for envd
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	if err != nil {
		return "", connect.NewError(connect.CodeUnauthenticated, errors.New("authorization: the Basic value is not base64"))
	}
	user, _, _ := strings.Cut(string(b), ":")
	if len(user) > 256 || strings.ContainsAny(user, "\x00/") {
		return "", UnknownUser(valid(user))
	}
	return user, nil
}
