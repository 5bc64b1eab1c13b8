package filesystem

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// How often a stream says that it is alive, where the client does not ask for another interval.
const (
	defaultKeepalive = 90 * time.Second
	maxKeepalive     = time.Hour
)

// errLost is what watches end with, and watchers say once, when events were lost: a client that mirrors a directory has to
// look at it anew, which it cannot know otherwise.
var errLost = errors.New("events were lost: more happened than the queue holds, or the directory has more below it than can be watched")

// options are those that a stream and a watcher have in common.
type options interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// begin begins to watch in the sandbox.
func begin(ctx context.Context, h http.Header, o options) (*guest.Watch, error) {
	u, p, err := request(ctx, h, o.GetPath())
	if err != nil {
		return nil, err
	}
	w, err := u.Sandbox.Guest.Watch(ctx, guest.WatchRequest{
		Path: p, User: u.Spec, Recursive: o.GetRecursive(), Entries: o.GetIncludeEntry(), Network: o.GetAllowNetworkMounts(),
	})
	if err != nil {
		return nil, failure(u.Sandbox, p, err)
	}
	return w, nil
}

// follow hands the events of a watch to f until f fails, ctx ends, or the watch does. It closes the watch. tick is called
// whenever nothing was handed over for the interval; 0: never.
func follow(ctx context.Context, s scope.Sandbox, w *guest.Watch, interval time.Duration, tick func() error, f func(guest.WatchEvents) error) error {
	type received struct {
		e   guest.WatchEvents
		err error
	}
	in := make(chan received)
	left := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			e, err := w.Recv()
			select {
			case in <- received{e, err}:
			case <-left:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		_ = w.Close()
		close(left)
		<-read
	}()
	var ticks <-chan time.Time
	if interval > 0 {
		t := time.NewTicker(interval)
		defer t.Stop()
		ticks = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.Ended:
			return ended(s)
		case <-ticks:
			if err := tick(); err != nil {
				return err
			}
		case r := <-in:
			if r.err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if place.Reported(r.err) || errors.Is(r.err, guest.ErrBadAnswer) {
					return r.err
				}
				return ended(s) // PID 1 hangs up when the sandbox ends, and we may hear of it before the node does
			}
			if err := f(r.e); err != nil {
				return err
			}
		}
	}
}

func (s *service) WatchDir(ctx context.Context, r *connect.Request[wire.WatchDirRequest], out *connect.ServerStream[wire.WatchDirResponse]) error {
	sb := scope.Of(ctx)
	w, err := begin(ctx, r.Header(), r.Msg)
	if err != nil {
		return err
	}
	send := func(m *wire.WatchDirResponse) error { return out.Send(m) }
	started := &wire.WatchDirResponse{Event: &wire.WatchDirResponse_Start{Start: &wire.WatchDirResponse_StartEvent{}}}
	if err := send(started); err != nil {
		_ = w.Close()
		return err
	}
	alive := func() error {
		return send(&wire.WatchDirResponse{Event: &wire.WatchDirResponse_Keepalive{Keepalive: &wire.WatchDirResponse_KeepAlive{}}})
	}
	err = follow(ctx, sb, w, keepalive(r.Header()), alive, func(e guest.WatchEvents) error {
		if e.Overflow {
			return connect.NewError(connect.CodeResourceExhausted, errLost)
		}
		for i := range e.Events {
			if err := send(&wire.WatchDirResponse{Event: &wire.WatchDirResponse_Filesystem{Filesystem: event(&e.Events[i])}}); err != nil {
				return err
			}
		}
		return nil
	})
	return failure(sb, r.Msg.GetPath(), err)
}

// keepalive is the interval that a client asks for, in whole seconds.
func keepalive(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || n <= 0 {
		return defaultKeepalive
	}
	return min(time.Duration(min(n, int(maxKeepalive/time.Second)))*time.Second, maxKeepalive)
}

var kinds = map[string]wire.EventType{
	guest.WatchCreate: wire.EventType_EVENT_TYPE_CREATE,
	guest.WatchWrite:  wire.EventType_EVENT_TYPE_WRITE,
	guest.WatchRemove: wire.EventType_EVENT_TYPE_REMOVE,
	guest.WatchRename: wire.EventType_EVENT_TYPE_RENAME,
	guest.WatchChmod:  wire.EventType_EVENT_TYPE_CHMOD,
}

func event(e *guest.WatchEvent) *wire.FilesystemEvent {
	out := &wire.FilesystemEvent{Name: e.Name, Type: kinds[e.Kind]}
	if e.Entry != nil {
		out.Entry = info(e.Entry)
	}
	return out
}

func unknownWatcher(id string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher '%.64s' does not exist", id))
}
