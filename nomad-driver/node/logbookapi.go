package node

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const maxSearch = 256 // bytes

// getLogbook is GET /v1/sandboxes/{id}/logbook. A sandbox that has ended, and is forgotten, has its book for a while.
func (n *Node) getLogbook(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	q, err := logQuery(r)
	if err != nil {
		return err
	}
	follow, err := boolParam(r, "follow")
	if err != nil {
		return err
	}
	if follow {
		return n.followLogbook(w, r, id, q)
	}
	entries, err := n.books.Read(id, q)
	if err != nil {
		return err
	}
	out := make([]api.LogEntry, len(entries))
	for i, e := range entries {
		out[i] = api.LogEntry(e)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func logQuery(r *http.Request) (logbook.Query, error) {
	after, err := timeParam(r, "after")
	if err != nil {
		return logbook.Query{}, err
	}
	before, err := timeParam(r, "before")
	if err != nil {
		return logbook.Query{}, err
	}
	limit, err := intParam(r, "limit")
	if err != nil {
		return logbook.Query{}, err
	}
	if limit == 0 {
		limit = nodeapi.MaxLogEntries
	}
	whole, err := boolParam(r, "whole_millis")
	if err != nil {
		return logbook.Query{}, err
	}
	v := r.URL.Query()
	q := logbook.Query{
		After: after, Before: before, Level: v.Get("level"), Source: v.Get("source"), Search: v.Get("search"), Limit: int(limit), WholeMillis: whole,
	}
	if _, ok := logbook.Weight(q.Level); !ok && q.Level != "" {
		return q, invalid("level: %.20q is none of debug, info, warn, error", q.Level)
	}
	switch d := v.Get("direction"); {
	case d == "backward":
		q.Backward = true
	case d != "" && d != "forward":
		return q, invalid("direction: %.20q is neither forward nor backward", d)
	case limit > nodeapi.MaxLogEntries:
		return q, invalid("limit: %d, at most %d", limit, nodeapi.MaxLogEntries)
	case len(q.Search) > maxSearch:
		return q, invalid("search: longer than %d bytes", maxSearch)
	}
	return q, nil
}

// followLogbook sends what is there and what comes, one entry a line, until the sandbox has ended. An empty line is a sign of life. A
// sandbox that has ended, or is forgotten, has what is there.
func (n *Node) followLogbook(w http.ResponseWriter, r *http.Request, id api.SandboxID, q logbook.Query) error {
	released := closed
	if b, err := n.box(id); err == nil {
		released = b.released
	}
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	if err := rc.Flush(); err != nil {
		return nil //nolint:nilerr // nobody is there any more
	}
	enc := json.NewEncoder(w)
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	book := n.books.Follow(id, q)
	for ended := false; ; {
		entries, wait, err := book.Next()
		if err != nil {
			return err
		}
		if err := rc.SetWriteDeadline(time.Now().Add(eventTimeout)); err != nil {
			return err
		}
		for _, e := range entries {
			if err := enc.Encode(e); err != nil {
				return nil //nolint:nilerr // as above
			}
		}
		if len(entries) > 0 {
			if err := rc.Flush(); err != nil {
				return nil //nolint:nilerr // as above
			}
		}
		switch {
		case wait == nil:
			if r.Context().Err() != nil || n.ctx.Err() != nil {
				return nil
			}
			continue // there is more
		case ended:
			return nil
		}
		select {
		case <-wait:
		case <-released: // its last words are in the book
			ended = true
		case <-beat.C:
			if _, err := w.Write([]byte("\n")); err != nil {
				return nil //nolint:nilerr // as above
			}
			if err := rc.Flush(); err != nil {
				return nil //nolint:nilerr // as above
			}
		case <-r.Context().Done():
			return nil
		case <-n.ctx.Done():
			return nil
		}
	}
}

// closed is the channel of what has been over for long.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
