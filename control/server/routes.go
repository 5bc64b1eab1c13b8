package server

import (
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
)

// handle answers a request, or returns an error before it has written anything.
type handle func(w http.ResponseWriter, r *http.Request) error

// route is one endpoint.
type route struct {
	pattern string
	handle  handle
	open    bool // served without a key, and to clients of every version
	stream  bool // has no time limit as a whole
	tickets bool // the handler itself checks who asks, by key or by ticket, before it does anything
}

// routes returns all endpoints, those of the E2B contract first.
func (s *Server) routes() []route {
	return []route{
		{pattern: "GET /health", handle: s.e2bHealth, open: true},
		{pattern: "POST /sandboxes", handle: s.e2bCreateV1},
		{pattern: "POST /v2/sandboxes", handle: s.e2bCreateV2},
		{pattern: "GET /sandboxes", handle: s.e2bListV1},
		{pattern: "GET /v2/sandboxes", handle: s.e2bListV2},
		{pattern: "GET /sandboxes/metrics", handle: s.e2bMetricsOfMany},
		{pattern: "GET /sandboxes/{id}", handle: s.e2bGet},
		{pattern: "GET /sandboxes/{id}/metrics", handle: s.e2bMetrics},
		{pattern: "DELETE /sandboxes/{id}", handle: s.e2bDelete},
		{pattern: "POST /sandboxes/{id}/timeout", handle: s.e2bTimeout},
		{pattern: "POST /sandboxes/{id}/refreshes", handle: s.e2bRefresh},
		{pattern: "POST /sandboxes/{id}/connect", handle: s.e2bConnectV1},
		{pattern: "POST /v2/sandboxes/{id}/connect", handle: s.e2bConnectV2},

		{pattern: "PUT /sandboxes/{id}/network", handle: s.e2bNetwork},
		{pattern: "POST /sandboxes/{id}/pause", handle: s.laterFor("pausing is")},
		{pattern: "POST /sandboxes/{id}/resume", handle: s.laterFor("resuming is")},
		{pattern: "POST /sandboxes/{id}/fork", handle: s.laterFor("forking is")},
		{pattern: "POST /sandboxes/{id}/snapshots", handle: s.laterFor("snapshots are")},
		{pattern: "GET /snapshots", handle: none},
		{pattern: "GET /sandboxes/{id}/logs", handle: s.e2bLogsV1},
		{pattern: "GET /v2/sandboxes/{id}/logs", handle: s.e2bLogsV2},

		{pattern: "GET /templates", handle: s.e2bTemplates},
		{pattern: "GET /v2/templates", handle: s.e2bTemplatesV2},
		{pattern: "GET /templates/{tid}", handle: s.e2bTemplate},
		{pattern: "DELETE /templates/{tid}", handle: s.e2bDeleteTemplate},
		{pattern: "GET /templates/{tid}/{what}", handle: s.e2bTemplatePart},
		{pattern: "GET /templates/{tid}/builds/{bid}/status", handle: s.e2bBuildStatus},
		{pattern: "PATCH /templates/{tid}", handle: later("publishing templates is")},
		{pattern: "PATCH /v2/templates/{tid}", handle: later("publishing templates is")},
		{pattern: "POST /templates/tags", handle: later("tagging templates is")},
		{pattern: "DELETE /templates/tags", handle: later("tagging templates is")},
		{pattern: "POST /v3/templates", handle: later("building templates is")},
		{pattern: "POST /v2/templates", handle: later("building templates is")},
		{pattern: "POST /templates", handle: later("building templates is")},
		{pattern: "GET /templates/{tid}/files/{hash}", handle: later("building templates is")},
		{pattern: "POST /v2/templates/{tid}/builds/{bid}", handle: later("building templates is")},

		{pattern: "GET /teams", handle: s.e2bTeams},
		{pattern: "GET /teams/{team}/metrics", handle: s.e2bTeamMetrics},
		{pattern: "GET /nodes", handle: s.e2bNodes},
		{pattern: "GET /nodes/{node}", handle: s.e2bNode},
		{pattern: "POST /nodes/{node}", handle: later("changing a node's status is")},
		{pattern: "GET /api-keys", handle: s.e2bKeys},
		{pattern: "POST /api-keys", handle: s.e2bCreateKey},
		{pattern: "DELETE /api-keys/{key}", handle: s.e2bDeleteKey},
		{pattern: "POST /access-tokens", handle: gonePath("access tokens are no more: use API keys")},
		{pattern: "GET /volumes", handle: none},
		{pattern: "POST /volumes", handle: later("volumes are")},
		{pattern: "GET /secrets", handle: none},
		{pattern: "POST /secrets", handle: later("secrets are")},

		{pattern: "GET /v1/health", handle: s.health, open: true},
		{pattern: "GET /v1/version", handle: s.version, open: true},
		{pattern: "GET /v1/openapi.json", handle: s.openAPI},
		{pattern: "GET /v1/metrics", handle: s.showMetrics},
		{pattern: "GET /v1/nodes", handle: s.nodes},
		{pattern: "GET /v1/events", handle: s.events, stream: true},

		{pattern: "POST /v1/sandboxes", handle: s.create},
		{pattern: "GET /v1/sandboxes", handle: s.list},
		{pattern: "GET /v1/sandboxes/{id}", handle: s.get},
		{pattern: "DELETE /v1/sandboxes/{id}", handle: s.delete},
		{pattern: "GET /v1/sandboxes/{id}/health", handle: s.sandboxHealth},
		{pattern: "GET /v1/sandboxes/{id}/stats", handle: s.stats},
		{pattern: "GET /v1/sandboxes/{id}/metrics", handle: s.sandboxMetrics},
		{pattern: "GET /v1/sandboxes/{id}/logs", handle: s.logs, stream: true},

		{pattern: "GET /v1/sandboxes/{id}/log", handle: s.sandboxLog},
		{pattern: "GET /v1/sandboxes/{id}/log/stream", handle: s.logStream, stream: true},

		{pattern: "POST /v1/sandboxes/{id}/exec", handle: s.exec, stream: true},
		{pattern: "POST /v1/sandboxes/{id}/attach", handle: s.attach, stream: true},
		{pattern: "POST /v1/sandboxes/{id}/processes", handle: s.startProcess},
		{pattern: "GET /v1/sandboxes/{id}/processes", handle: s.processes},
		{pattern: "POST /v1/sandboxes/{id}/signal", handle: s.signal},
		{pattern: "POST /v1/sandboxes/{id}/stdin", handle: s.stdin},
		{pattern: "POST /v1/sandboxes/{id}/resize", handle: s.resize},

		{pattern: "GET /v1/sandboxes/{id}/files", handle: s.readFile, stream: true},
		{pattern: "PUT /v1/sandboxes/{id}/files", handle: s.writeFile, stream: true},
		{pattern: "DELETE /v1/sandboxes/{id}/files", handle: s.removeFile},
		{pattern: "POST /v1/sandboxes/{id}/links", handle: s.createLink},
		{pattern: "GET /v1/sandboxes/{id}/stat", handle: s.statFile},
		{pattern: "GET /v1/sandboxes/{id}/dir", handle: s.readDir},
		{pattern: "POST /v1/sandboxes/{id}/dir", handle: s.makeDir},
		{pattern: "POST /v1/sandboxes/{id}/rename", handle: s.renameFile},
		{pattern: "GET /v1/sandboxes/{id}/archive", handle: s.readArchive, stream: true},
		{pattern: "PUT /v1/sandboxes/{id}/archive", handle: s.writeArchive, stream: true},

		{pattern: "POST /v1/terminals", handle: s.createTerminal},
		{pattern: "GET /v1/terminals", handle: s.listTerminals},
		{pattern: "GET /v1/terminals/{id}", handle: s.getTerminal},
		{pattern: "DELETE /v1/terminals/{id}", handle: s.deleteTerminal},
		{pattern: "POST /v1/terminals/{id}/ticket", handle: s.terminalTicket},
		{pattern: "GET /v1/terminals/{id}/attach", handle: s.attachTerminal, tickets: true, stream: true},

		{pattern: "GET /v1/templates", handle: s.templates},
		{pattern: "GET /v1/templates/{name}", handle: s.template},
		{pattern: "PUT /v1/templates/{name}", handle: s.importTemplate, stream: true},
		{pattern: "DELETE /v1/templates/{name}", handle: s.deleteTemplate},
	}
}

// unknown answers what no route matches: 405 with the methods that the path has, else 404.
func (s *Server) unknown(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	probe := r.Clone(r.Context())
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe.Method = m
		if _, pattern := s.mux.Handler(probe); pattern != "/" && pattern != "" {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		s.fail(w, r, api.Errorf(http.StatusNotFound, codeNoRoute, "there is nothing at this path"))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	s.fail(w, r, api.Errorf(http.StatusMethodNotAllowed, codeNoMethod,
		"the method %.20q is not served at this path, but %s", r.Method, strings.Join(allowed, ", ")))
}
