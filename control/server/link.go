package server

import (
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/edge"
)

const (
	defaultLinkTime = 5 * time.Minute
	maxLinkTime     = 7 * 24 * time.Hour
)

// createLink is POST /v1/sandboxes/{id}/links: a link that reads or writes one file without a key, until it expires, its sandbox ends, or
// the key that signed it is revoked.
func (s *Server) createLink(w http.ResponseWriter, r *http.Request) error {
	id, _, err := s.node(r) // it is the caller's, and runs
	if err != nil {
		return err
	}
	if s.cfg.Links == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service makes no links")
	}
	var req api.LinkRequest
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	life := time.Duration(req.ExpiresIn) * time.Second
	switch {
	case req.ExpiresIn == 0:
		life = defaultLinkTime
	case req.ExpiresIn < 0 || req.ExpiresIn > int64(maxLinkTime/time.Second):
		return invalid("expires_in is %d, 1 to %d seconds are allowed", req.ExpiresIn, int64(maxLinkTime/time.Second))
	}
	if req.Operation != "read" && req.Operation != "write" {
		return invalid("operation is %.20q, neither read nor write", req.Operation)
	}
	if req.Path == "" {
		return invalid("path is missing")
	}
	if err := firstOf(checkText("path", req.Path, maxPathBytes), checkText("user", req.User, maxUserBytes)); err != nil {
		return err
	}
	expires := time.Now().Add(life).Truncate(time.Second)
	q, version, err := s.cfg.Links.Query(edge.Link{Sandbox: id, Operation: req.Operation, Path: req.Path, User: req.User, Expires: expires})
	if err != nil {
		return err
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	writeJSON(w, http.StatusCreated, api.Link{URL: scheme + "://" + r.Host + "/files?" + q.Encode(), ExpiresAt: expires.UTC(), KeyVersion: uint32(version)})
	return nil
}
