package server

import (
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rebalance"
)

func (s *Server) needRebalance() error {
	if s.cfg.Rebalance == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not move sandboxes between nodes")
	}
	return nil
}

const maxClassesWord = 200 // bytes of the parameter

// showRebalance is GET /v1/rebalance: how nodes are loaded, and what would be moved. It changes nothing.
func (s *Server) showRebalance(w http.ResponseWriter, r *http.Request) error {
	if err := s.needRebalance(); err != nil {
		return err
	}
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	l := rebalance.Limits{Moves: int(q.integer("moves", 0, 1, rebalance.MaxMoves))}
	if classes := q.str("classes", maxClassesWord); classes != "" {
		l.Classes = strings.Split(classes, ",")
	}
	if q.err != nil {
		return q.err
	}
	if err := l.Check(); err != nil {
		return invalid("%s", err)
	}
	out, err := s.cfg.Rebalance.Show(r.Context(), l)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// rebalance is POST /v1/rebalance: what is planned is done, and answered when it is.
func (s *Server) rebalance(w http.ResponseWriter, r *http.Request) error {
	if err := s.needRebalance(); err != nil {
		return err
	}
	var in api.RebalanceRequest
	if err := s.decodeBody(w, r, maxJSONBytes, true, &in); err != nil {
		return err
	}
	l := rebalance.Limits{Moves: in.Moves, MinGain: in.MinGain, Classes: in.Classes}
	if err := l.Check(); err != nil {
		return invalid("%s", err)
	}
	if in.AtOnce < 0 || in.AtOnce > rebalance.MaxAtOnce {
		return invalid("at_once: %d is not between 1 and %d", in.AtOnce, rebalance.MaxAtOnce)
	}
	out, err := s.cfg.Rebalance.Apply(r.Context(), l, in.AtOnce)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}
