package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// eventGap is the least time between two looks at the tables: fast changes come as one.
const eventGap = 100 * time.Millisecond

// events is GET /v1/events: newline-delimited JSON of api.Event, from all sandboxes of the tenant on.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Watcher == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service has no event stream")
	}
	sandboxes, index, changed, err := s.watch(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	enc := json.NewEncoder(newLiveWriter(w))
	first := api.Event{Index: index, Time: time.Now().UTC(), Type: api.EventSync, Sandboxes: make([]api.Sandbox, 0, len(sandboxes))}
	seen := map[api.SandboxID]uint64{}
	for _, sb := range sandboxes {
		first.Sandboxes = append(first.Sandboxes, sandboxView(sb))
		seen[sb.ID] = sb.ModifyIndex
	}
	if enc.Encode(first) != nil {
		return nil
	}
	beat := time.NewTicker(s.cfg.BeatInterval)
	defer beat.Stop()
	for {
		quiet := false
		select {
		case <-r.Context().Done():
			return nil
		case <-s.closing.Done():
			return nil
		case <-beat.C: // looks as well: see Watcher
			quiet = true
		case <-changed:
		}
		if sandboxes, index, changed, err = s.watch(r); err != nil {
			return nil //nolint:nilerr // the stream is under way: its end tells the client to come again
		}
		news := changes(seen, sandboxes, index)
		if quiet && len(news) == 0 {
			news = []api.Event{{Index: index, Time: time.Now().UTC(), Type: api.EventBeat}}
		}
		for _, ev := range news {
			if enc.Encode(ev) != nil {
				return nil
			}
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-s.closing.Done():
			return nil
		case <-time.After(eventGap):
		}
	}
}

// watch is the watcher's answer without what the caller may not see.
func (s *Server) watch(r *http.Request) ([]state.Sandbox, uint64, <-chan struct{}, error) {
	sandboxes, index, changed, err := s.cfg.Watcher.Watch(tenant(r))
	if visible := s.visible(r); visible != nil {
		sandboxes = slices.DeleteFunc(slices.Clone(sandboxes), func(sb state.Sandbox) bool { return !visible(sb) })
	}
	return sandboxes, index, changed, err
}

// changes returns what is new or gone since the last look, whose indexes are in seen, and brings seen up to date.
func changes(seen map[api.SandboxID]uint64, now []state.Sandbox, index uint64) []api.Event {
	var out []api.Event
	at := time.Now().UTC()
	here := make(map[api.SandboxID]struct{}, len(now))
	for _, sb := range now {
		here[sb.ID] = struct{}{}
		if old, ok := seen[sb.ID]; ok && old == sb.ModifyIndex {
			continue
		}
		seen[sb.ID] = sb.ModifyIndex
		view := sandboxView(sb)
		out = append(out, api.Event{Index: index, Time: at, Type: api.EventChanged, Sandbox: &view})
	}
	for id := range seen {
		if _, ok := here[id]; !ok {
			delete(seen, id)
			out = append(out, api.Event{Index: index, Time: at, Type: api.EventRemoved, Sandbox: &api.Sandbox{ID: id}})
		}
	}
	return out
}
