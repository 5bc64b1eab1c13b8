package server

import (
	"context"
	"math"
	"net/http"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// logs is GET /v1/sandboxes/{id}/logs: output of the sandbox's own command.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	o := nodeapi.LogOptions{
		Stream: q.str("stream", 16),
		Offset: q.integer("offset", 0, 0, math.MaxInt64),
		Tail:   q.integer("tail", 0, 0, math.MaxInt64),
		Follow: q.boolean("follow"),
	}
	if o.Stream != "" && o.Stream != nodeapi.StreamStdout && o.Stream != nodeapi.StreamStderr {
		q.fail(invalid("parameter stream is %q, %s or %s is wanted", o.Stream, nodeapi.StreamStdout, nodeapi.StreamStderr))
	}
	if q.err != nil {
		return q.err
	}
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(s.closing, cancel)
	defer stop()
	body, offset, err := node.Logs(ctx, id, o)
	if err != nil {
		return err
	}
	defer body.Close()
	w.Header().Set(api.OffsetHeader, strconv.FormatInt(offset, 10))
	s.sendBody(w, r, body, octets, o.Follow)
	return nil
}

// stats is GET /v1/sandboxes/{id}/stats.
func (s *Server) stats(w http.ResponseWriter, r *http.Request) error {
	id, node, err := s.node(r)
	if err != nil {
		return err
	}
	st, err := node.Stats(r.Context(), id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.Stats(st))
	return nil
}
