// Package filesystem is the service by which E2B clients look at and change the files of a sandbox: filesystem.Filesystem.
//
// It owns the translation between that protocol and the guest's, and the watchers that clients poll, which live here and end
// with the daemon or the sandbox. It never opens a file itself: PID 1 of the sandbox does everything, as the user that the
// request names. Uploads and downloads are package files.
package filesystem

import (
	"context"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem/filesystemconnect"
)

// maxRequest bounds a request, in bytes: two paths and some.
const maxRequest = 64 << 10

// Config is what New needs. The zero value works.
type Config struct {
	// Context ends the watchers that clients poll. nil: they end with their sandboxes only.
	Context context.Context //nolint:containedctx // the life of the service, not of a call
	// Watchers counts the goroutines of these watchers, so that whoever ends Context can wait for them. May be nil.
	Watchers *sync.WaitGroup
	// Options are added to the handler's.
	Options []connect.HandlerOption
}

// service has the methods. Everything about the sandbox comes with the request.
type service struct {
	ctx   context.Context //nolint:containedctx // as Config.Context
	group *sync.WaitGroup

	mu       sync.Mutex
	watchers map[api.SandboxID]map[string]*watcher
}

var _ filesystemconnect.FilesystemHandler = (*service)(nil)

// New returns the path prefix of the service and its handler. Requests carry their sandbox (package scope) and have been
// authenticated.
func New(c Config) (string, http.Handler) {
	s := &service{ctx: c.Context, group: c.Watchers, watchers: map[api.SandboxID]map[string]*watcher{}}
	if s.ctx == nil {
		s.ctx = context.Background()
	}
	if s.group == nil {
		s.group = &sync.WaitGroup{}
	}
	return filesystemconnect.NewFilesystemHandler(s, append([]connect.HandlerOption{connect.WithReadMaxBytes(maxRequest)}, c.Options...)...)
}

// request is who asks and for which path.
func request(ctx context.Context, h http.Header, path string) (place.User, string, error) {
	s := scope.Of(ctx)
	name, _, _ := (&http.Request{Header: h}).BasicAuth() // the password means nothing: the token has let the request in
	u, err := place.As(ctx, s, name)
	if err != nil {
		return place.User{}, "", failure(s, "", err)
	}
	p, err := u.Path(path)
	if err != nil {
		return place.User{}, "", failure(s, path, err)
	}
	return u, p, nil
}

func entryOf(ctx context.Context, u place.User, path string) (*wire.EntryInfo, error) {
	e, err := u.Sandbox.Guest.Entry(ctx, u.Request(path))
	if place.Is(err, notDirCode) { // a path through a file leads nowhere
		return nil, connect.NewError(connect.CodeNotFound, text(place.Missing(path)))
	}
	if err != nil {
		return nil, failure(u.Sandbox, path, err)
	}
	return info(&e), nil
}
