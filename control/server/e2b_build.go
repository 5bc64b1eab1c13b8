package server

import (
	"context"
	"io"
	"net/http"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Builds is what the server needs of the builder of templates; build.Service is one. Errors are as those of Lifecycle.
type Builds interface {
	Request(ctx context.Context, caller auth.Identity, req api.BuildRequest) (api.RequestedBuild, error)
	// Builds returns a template's builds that are remembered, the newest first: a template has them before it exists.
	Builds(tenant, templateID string) ([]state.Build, error)
	// Files says whether a COPY step's files are there, and gives a ticket to upload them with.
	Files(tenant, hash string) (present bool, ticket string, err error)
	Upload(ticket string, r io.Reader) error
	Start(ctx context.Context, caller auth.Identity, templateID, buildID string, in api.BuildInstructions) error
	// Cancel ends all builds of a tenant that have not ended.
	Cancel(ctx context.Context, tenant string) (cancelled, failed int, err error)
	// Status tells of a build, with at most limit entries of its log, of level and more, from offset on.
	Status(tenant, templateID, buildID string, offset, limit int, level string) (api.TemplateBuildInfo, error)
}

// Limits of what is asked of a build's log.
const (
	maxBuildPage = 100
	maxBuildLog  = 1 << 20
)

func (s *Server) needBuilds() error {
	if s.cfg.Builds == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service does not build templates")
	}
	return nil
}

// e2bRequestBuild is POST /v3/templates.
func (s *Server) e2bRequestBuild(w http.ResponseWriter, r *http.Request) error {
	var req api.BuildRequest
	if err := firstOf(s.needBuilds(), s.decodeBody(w, r, maxJSONBytes, false, &req)); err != nil {
		return err
	}
	out, err := s.cfg.Builds.Request(r.Context(), caller(r), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusAccepted, out)
	return nil
}

// e2bBuildFiles is GET /templates/{tid}/files/{hash}: whether the files of a COPY step are here, and where they are uploaded to.
func (s *Server) e2bBuildFiles(w http.ResponseWriter, r *http.Request) error {
	if err := s.needBuilds(); err != nil {
		return err
	}
	known, err := s.cfg.Builds.Builds(tenant(r), r.PathValue("tid"))
	if err != nil {
		return err
	}
	if len(known) == 0 {
		return api.Errorf(http.StatusNotFound, api.CodeNotFound, "template %.80q is not being built", r.PathValue("tid"))
	}
	present, ticket, err := s.cfg.Builds.Files(tenant(r), r.PathValue("hash"))
	if err != nil {
		return err
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	writeJSON(w, http.StatusCreated, api.BuildUpload{Present: present, URL: scheme + "://" + r.Host + "/v1/uploads?ticket=" + ticket})
	return nil
}

// uploadBuildFiles is PUT /v1/uploads: the files of a COPY step, for whoever has the ticket. It is a parameter, because paths are logged.
func (s *Server) uploadBuildFiles(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	ticket := q.str("ticket", maxTokenBytes)
	if q.err != nil {
		return q.err
	}
	if ticket == "" {
		return api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized, "parameter ticket is missing")
	}
	if err := s.needBuilds(); err != nil {
		return err
	}
	body := s.upload(w, r)
	if err := s.cfg.Builds.Upload(ticket, body); err != nil {
		return body.fault(err)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// e2bStartBuild is POST /v2/templates/{tid}/builds/{bid}.
func (s *Server) e2bStartBuild(w http.ResponseWriter, r *http.Request) error {
	var in api.BuildInstructions
	if err := firstOf(s.needBuilds(), s.decodeBody(w, r, maxJSONBytes, false, &in)); err != nil {
		return err
	}
	if err := s.cfg.Builds.Start(r.Context(), caller(r), r.PathValue("tid"), r.PathValue("bid"), in); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// e2bCancelBuilds is POST /admin/teams/{team}/builds/cancel.
func (s *Server) e2bCancelBuilds(w http.ResponseWriter, r *http.Request) error {
	if err := firstOf(ownTeam(r), s.needBuilds()); err != nil {
		return err
	}
	cancelled, failed, err := s.cfg.Builds.Cancel(r.Context(), tenant(r))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, api.CancelledBuilds{CancelledCount: cancelled, FailedCount: failed})
	return nil
}

// build tells of a build: of one that was asked for, else of the one that every template is that exists.
func (s *Server) build(r *http.Request, offset, limit int, level string) (api.TemplateBuildInfo, error) {
	tid, bid := r.PathValue("tid"), r.PathValue("bid")
	if s.cfg.Builds != nil {
		info, err := s.cfg.Builds.Status(tenant(r), tid, bid, offset, limit, level)
		if !api.IsNotFound(err) {
			return info, err
		}
	}
	return s.templateAsBuild(r.Context(), tenant(r), tid, bid)
}

// e2bBuildStatus is GET /templates/{tid}/builds/{bid}/status.
func (s *Server) e2bBuildStatus(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	offset, limit := q.integer("logsOffset", 0, 0, maxBuildLog), q.integer("limit", maxBuildPage, 0, maxBuildPage)
	level := q.level()
	if q.err != nil {
		return q.err
	}
	info, err := s.build(r, int(offset), int(limit), level)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, info)
	return nil
}

// e2bBuildLogs is GET /templates/{tid}/builds/{bid}/logs: a page of a build's log, in either direction from a time.
func (s *Server) e2bBuildLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	cursor, limit, level := q.millis("cursor"), int(q.integer("limit", maxBuildPage, 0, maxBuildPage)), q.level()
	backward := false
	switch d := q.str("direction", 16); d {
	case "", "forward":
	case "backward":
		backward = true
	default:
		q.fail(invalid("parameter direction: %.20q is neither forward nor backward", d))
	}
	if q.err != nil {
		return q.err
	}
	info, err := s.build(r, 0, maxBuildLog, level)
	if err != nil {
		return err
	}
	all := info.LogEntries
	if backward {
		slices.Reverse(all)
	}
	out := api.BuildLogs{Logs: []api.BuildLogEntry{}}
	for _, e := range all {
		past := !cursor.IsZero() && (backward && !e.Timestamp.Before(cursor) || !backward && !e.Timestamp.After(cursor))
		if !past && len(out.Logs) < limit {
			out.Logs = append(out.Logs, e)
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}
