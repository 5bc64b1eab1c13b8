// Package scope says which sandbox a request to envd is about, and as whom it acts there.
//
// It owns the description of that sandbox and how it travels with a request. It never speaks to a sandbox itself.
package scope

import (
	"context"
	"os"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Guest is the way to the PID 1 of a sandbox; *guest.Client is one. It may be used from any goroutine, and every call ends
// with its context. Failures that the guest reports are *frame.ErrorBody with one of the guest.Code* words.
type Guest interface {
	Start(ctx context.Context, s guest.Start) (guest.ProcessInfo, error)
	StartAttached(ctx context.Context, s guest.Start) (*guest.Stream, error)
	Attach(ctx context.Context, a guest.Attach) (*guest.Stream, error)
	List(ctx context.Context) ([]guest.ProcessInfo, error)
	Signal(ctx context.Context, r guest.SignalRequest) error
	Stdin(ctx context.Context, r guest.StdinRequest) error
	Resize(ctx context.Context, pid guest.ProcessID, size frame.Size) error
	LookupUser(ctx context.Context, user string) (guest.UserInfo, error)

	Open(ctx context.Context, r guest.FileRequest) (*os.File, guest.FileInfo, error)
	Stat(ctx context.Context, r guest.FileRequest) (guest.FileInfo, error)
	ReadDir(ctx context.Context, r guest.FileRequest) ([]guest.FileInfo, error)
	Mkdir(ctx context.Context, r guest.FileRequest) (guest.FileInfo, error)
	Remove(ctx context.Context, r guest.FileRequest) error
	Rename(ctx context.Context, r guest.FileRequest) error

	Entry(ctx context.Context, r guest.FileRequest) (guest.Entry, error)
	Walk(ctx context.Context, r guest.FileRequest) ([]guest.Entry, error)
	ReadSmall(ctx context.Context, r guest.FileRequest) ([]byte, error)
	Watch(ctx context.Context, r guest.WatchRequest) (*guest.Watch, error)
}

// Sandbox is the sandbox that a request is about.
type Sandbox struct {
	ID          api.SandboxID
	Template    string            // its id
	AccessToken string            // what a request must show; empty: nothing
	Env         map[string]string // of every process
	User        string            // default user; empty: the template's, which PID 1 knows
	Cwd         string            // default working directory of processes; empty: the user's home
	Guest       Guest
	// Ended closes when the sandbox has ended. Streams are cut then.
	Ended <-chan struct{}
}

// eventsAddress is where the contract's platform takes events from programs. It is the sandbox's gateway, which refuses the connection
// here: what programs print is in the sandbox's log anyway.
const eventsAddress = "http://10.255.255.1"

// Facts are the variables by which programs know that they are in a sandbox, and in which.
func Facts(id api.SandboxID, template string) [][2]string {
	return [][2]string{
		{"E2B_SANDBOX", "true"}, {"E2B_SANDBOX_ID", string(id)}, {"E2B_TEMPLATE_ID", template}, {"E2B_EVENTS_ADDRESS", eventsAddress},
	}
}

// Own returns the variables of env that are not Facts, which a process is started with before its own.
func Own(env []string) []string {
	for _, f := range Facts("", "") {
		if len(env) > 0 && strings.HasPrefix(env[0], f[0]+"=") {
			env = env[1:]
		}
	}
	return env
}

// FactsDir holds the same as files, whose names are those of the variables behind a dot.
const FactsDir = "/run/e2b"

type key struct{}

// With returns a context that carries the sandbox of a request.
func With(ctx context.Context, s Sandbox) context.Context { return context.WithValue(ctx, key{}, s) }

// Of returns the sandbox of a request that was let in. It panics where there is none: that is a route without its guard.
func Of(ctx context.Context) Sandbox { return ctx.Value(key{}).(Sandbox) }
