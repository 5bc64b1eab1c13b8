package filesystem

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Bounds of what is kept for clients that poll.
const (
	maxWatchers   = 32 // of a sandbox
	maxQueue      = 8192
	maxQueueBytes = 2 << 20 // of a watcher's events
)

// watcher collects events until its client comes for them.
type watcher struct {
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	queue []*wire.FilesystemEvent
	bytes int
	lost  bool // since the client came
}

func (s *service) CreateWatcher(ctx context.Context, r *connect.Request[wire.CreateWatcherRequest]) (*connect.Response[wire.CreateWatcherResponse], error) {
	sb := scope.Of(ctx)
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	id := hex.EncodeToString(raw[:])
	life, stop := context.WithCancel(s.ctx)
	w := &watcher{stop: stop, done: make(chan struct{})}
	if !s.reserve(sb, id, w) {
		stop()
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("sandbox %s has more than %d watchers", sb.ID, maxWatchers))
	}
	watch, err := begin(ctx, r.Header(), r.Msg)
	if err != nil {
		s.forget(sb, id, w)
		stop()
		return nil, err
	}
	s.group.Add(1)
	go func() {
		defer s.group.Done()
		defer close(w.done)
		defer s.forget(sb, id, w)
		_ = follow(life, sb, watch, 0, nil, w.put) // whatever ended it, there is no such watcher any more
	}()
	return connect.NewResponse(&wire.CreateWatcherResponse{WatcherId: id}), nil
}

// put queues events. What the queue does not hold is lost, the newest first: what is kept is then what happened up to then.
func (w *watcher) put(e guest.WatchEvents) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = w.lost || e.Overflow
	for i := range e.Events {
		out := event(&e.Events[i])
		n := proto.Size(out)
		if len(w.queue) >= maxQueue || w.bytes+n > maxQueueBytes {
			w.lost = true
			return nil
		}
		w.queue, w.bytes = append(w.queue, out), w.bytes+n
	}
	return nil
}

func (w *watcher) take() ([]*wire.FilesystemEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost {
		// Once: the events that are there come with the next call.
		w.lost = false
		return nil, connect.NewError(connect.CodeResourceExhausted, errLost)
	}
	q := w.queue
	w.queue, w.bytes = nil, 0
	return q, nil
}

func (s *service) GetWatcherEvents(ctx context.Context, r *connect.Request[wire.GetWatcherEventsRequest]) (*connect.Response[wire.GetWatcherEventsResponse], error) {
	w := s.find(scope.Of(ctx), r.Msg.GetWatcherId())
	if w == nil {
		return nil, unknownWatcher(r.Msg.GetWatcherId())
	}
	events, err := w.take()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.GetWatcherEventsResponse{Events: events}), nil
}

func (s *service) RemoveWatcher(ctx context.Context, r *connect.Request[wire.RemoveWatcherRequest]) (*connect.Response[wire.RemoveWatcherResponse], error) {
	w := s.find(scope.Of(ctx), r.Msg.GetWatcherId())
	if w == nil {
		return nil, unknownWatcher(r.Msg.GetWatcherId())
	}
	w.stop()
	select {
	case <-w.done:
	case <-ctx.Done():
	}
	return connect.NewResponse(&wire.RemoveWatcherResponse{}), nil
}

func (s *service) reserve(sb scope.Sandbox, id string, w *watcher) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.watchers[sb.ID]
	if len(of) >= maxWatchers {
		return false
	}
	if of == nil {
		of = map[string]*watcher{}
		s.watchers[sb.ID] = of
	}
	of[id] = w
	return true
}

func (s *service) forget(sb scope.Sandbox, id string, w *watcher) {
	w.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers[sb.ID], id)
	if len(s.watchers[sb.ID]) == 0 {
		delete(s.watchers, sb.ID)
	}
}

func (s *service) find(sb scope.Sandbox, id string) *watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watchers[sb.ID][id]
}
