package process

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// wanted says which processes count.
type wanted func(guest.ProcessInfo) bool

func running(p guest.ProcessInfo) bool { return p.Exit == nil }

// joinable processes run, or have ended so lately that their end is still told.
func joinable(p guest.ProcessInfo) bool { return p.Exit == nil || time.Since(p.EndedAt) < keepExited }

// find returns the process that a client means: by its pid, or the youngest one with a tag.
func find(ctx context.Context, sel *wire.ProcessSelector, want wanted) (guest.ProcessInfo, error) {
	var is wanted
	var name string
	switch s := sel.GetSelector().(type) {
	case *wire.ProcessSelector_Pid:
		name = fmt.Sprintf("process with pid %d not found", s.Pid)
		is = func(p guest.ProcessInfo) bool { return p.PID == guest.ProcessID(s.Pid) }
	case *wire.ProcessSelector_Tag:
		name = fmt.Sprintf("process with tag %s not found", s.Tag)
		is = func(p guest.ProcessInfo) bool { return p.Tag == s.Tag && s.Tag != "" }
	default:
		return guest.ProcessInfo{}, connect.NewError(connect.CodeInvalidArgument, errors.New("process: a pid or a tag is needed"))
	}
	all, err := scope.Of(ctx).Guest.List(ctx)
	if err != nil {
		return guest.ProcessInfo{}, failed(err)
	}
	for i := len(all) - 1; i >= 0; i-- { // in the order of their start
		if is(all[i]) && want(all[i]) {
			return all[i], nil
		}
	}
	return guest.ProcessInfo{}, connect.NewError(connect.CodeNotFound, errors.New(name))
}

// valid makes a string fit for the wire, whose strings are UTF-8. What is none shows as the replacement character.
func valid(s string) string { return strings.ToValidUTF8(s, "�") }

func validAll(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = valid(s)
	}
	return out
}

func cut(env string) (key, value string) {
	key, value, _ = strings.Cut(env, "=")
	return key, value
}
