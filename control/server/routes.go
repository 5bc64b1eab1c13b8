package server

import (
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/state"
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

	needs  rbac.Permission // of whoever asks; a route has one unless it is open, or for anyone
	each   bool            // the handler asks again for each object: the path names none, or another
	local  bool            // every server answers for itself, whoever leads; so do those that are open
	anyone bool            // served to whoever has an identity: it tells of nothing but him and the API
}

func can(r rbac.Resource, a rbac.Action) rbac.Permission {
	return rbac.Permission{Resource: r, Action: a}
}

// routes returns all endpoints, those of the E2B contract first.
func (s *Server) routes() []route {
	return append(s.envdRoutes(), []route{
		{pattern: "GET /health", handle: s.e2bHealth, open: true},
		{pattern: "POST /sandboxes", handle: s.e2bCreateV1, each: true, needs: can(rbac.Sandbox, rbac.Create)},
		{pattern: "POST /v2/sandboxes", handle: s.e2bCreateV2, each: true, needs: can(rbac.Sandbox, rbac.Create)},
		{pattern: "GET /sandboxes", handle: s.e2bListV1, each: true, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v2/sandboxes", handle: s.e2bListV2, each: true, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /sandboxes/metrics", handle: s.e2bMetricsOfMany, each: true, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /sandboxes/{id}", handle: s.e2bGet, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /sandboxes/{id}/metrics", handle: s.e2bMetrics, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "DELETE /sandboxes/{id}", handle: s.e2bDelete, needs: can(rbac.Sandbox, rbac.Delete)},
		{pattern: "POST /sandboxes/{id}/timeout", handle: s.e2bTimeout, needs: can(rbac.Sandbox, rbac.Update)},
		{pattern: "POST /sandboxes/{id}/refreshes", handle: s.e2bRefresh, needs: can(rbac.Sandbox, rbac.Update)},
		{pattern: "POST /sandboxes/{id}/connect", handle: s.e2bConnectV1, needs: can(rbac.Sandbox, rbac.Connect)},
		{pattern: "POST /v2/sandboxes/{id}/connect", handle: s.e2bConnectV2, needs: can(rbac.Sandbox, rbac.Connect)},

		{pattern: "PUT /sandboxes/{id}/network", handle: s.e2bNetwork, needs: can(rbac.Network, rbac.Update)},
		{pattern: "POST /sandboxes/{id}/pause", handle: s.e2bPause, needs: can(rbac.Sandbox, rbac.Update)},
		{pattern: "POST /sandboxes/{id}/resume", handle: s.e2bResume, needs: can(rbac.Sandbox, rbac.Update)},
		{pattern: "POST /sandboxes/{id}/fork", handle: s.e2bFork, needs: can(rbac.Sandbox, rbac.Create)},
		{pattern: "POST /sandboxes/{id}/snapshots", handle: s.e2bSnapshot, needs: can(rbac.Snapshot, rbac.Create)},
		{pattern: "GET /snapshots", handle: s.e2bSnapshots, needs: can(rbac.Snapshot, rbac.Read)},
		{pattern: "GET /sandboxes/{id}/logs", handle: s.e2bLogsV1, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v2/sandboxes/{id}/logs", handle: s.e2bLogsV2, needs: can(rbac.Sandbox, rbac.Read)},

		{pattern: "GET /templates", handle: s.e2bTemplates, each: true, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /v2/templates", handle: s.e2bTemplatesV2, each: true, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /templates/{tid}", handle: s.e2bTemplate, needs: can(rbac.Template, rbac.Read)},
		{pattern: "DELETE /templates/{tid}", handle: s.e2bDeleteTemplate, needs: can(rbac.Template, rbac.Delete)},
		{pattern: "GET /templates/{tid}/{what}", handle: s.e2bTemplatePart, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /templates/{tid}/builds/{bid}/status", handle: s.e2bBuildStatus, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /templates/{tid}/builds/{bid}/logs", handle: s.e2bBuildLogs, needs: can(rbac.Template, rbac.Read)},
		{pattern: "PATCH /templates/{tid}", handle: s.e2bPublish, needs: can(rbac.Template, rbac.Update)},
		{pattern: "PATCH /v2/templates/{tid}", handle: s.e2bPublishV2, needs: can(rbac.Template, rbac.Update)},
		{pattern: "POST /templates/tags", handle: s.e2bTag, needs: can(rbac.Template, rbac.Update)},
		{pattern: "DELETE /templates/tags", handle: s.e2bUntag, needs: can(rbac.Template, rbac.Update)},
		{pattern: "POST /v3/templates", handle: s.e2bRequestBuild, needs: can(rbac.Template, rbac.Create)},
		{pattern: "POST /v2/templates", handle: later("building templates is"), needs: can(rbac.Template, rbac.Create)},
		{pattern: "POST /templates", handle: later("building templates is"), needs: can(rbac.Template, rbac.Create)},
		{pattern: "GET /templates/{tid}/files/{hash}", handle: s.e2bBuildFiles, needs: can(rbac.Template, rbac.Update)},
		{pattern: "POST /v2/templates/{tid}/builds/{bid}", handle: s.e2bStartBuild, needs: can(rbac.Template, rbac.Update)},

		{pattern: "GET /teams", handle: s.e2bTeams, needs: can(rbac.Tenant, rbac.Read)},
		{pattern: "GET /teams/{team}/metrics", handle: s.e2bTeamMetrics, needs: can(rbac.Tenant, rbac.Read)},
		{pattern: "GET /teams/{team}/metrics/max", handle: s.e2bTeamMetricsMax, needs: can(rbac.Tenant, rbac.Read)},
		{pattern: "POST /admin/teams/{team}/builds/cancel", handle: s.e2bCancelBuilds, needs: can(rbac.Template, rbac.Delete)},
		{pattern: "GET /nodes", handle: s.e2bNodes, needs: can(rbac.Node, rbac.Read)},
		{pattern: "GET /nodes/{node}", handle: s.e2bNode, needs: can(rbac.Node, rbac.Read)},
		{pattern: "POST /nodes/{node}", handle: s.e2bChangeNode, needs: can(rbac.Node, rbac.Update)},
		{pattern: "GET /api-keys", handle: s.e2bKeys, needs: can(rbac.Key, rbac.Read)},
		{pattern: "POST /api-keys", handle: s.e2bCreateKey, needs: can(rbac.Key, rbac.Create)},
		{pattern: "PATCH /api-keys/{key}", handle: s.e2bRenameKey, needs: can(rbac.Key, rbac.Update)},
		{pattern: "DELETE /api-keys/{key}", handle: s.e2bDeleteKey, needs: can(rbac.Key, rbac.Delete)},
		{pattern: "POST /access-tokens", handle: gonePath("access tokens are no more: use API keys"), needs: can(rbac.Key, rbac.Create)},
		{pattern: "DELETE /access-tokens/{token}", handle: gonePath("access tokens are no more: use API keys"), needs: can(rbac.Key, rbac.Delete)},
		{pattern: "POST /admin/teams/{tenant}/sandboxes/kill", handle: s.e2bAdminKill, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "GET /admin/sandboxes/running-counts", handle: s.e2bRunningCounts, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "POST /admin/teams/{tenant}/api-keys", handle: s.e2bAdminCreateKey, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "DELETE /admin/teams/{tenant}/api-keys/{key}", handle: s.e2bAdminDeleteKey, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "GET /volumes", handle: none, needs: can(rbac.Volume, rbac.Read)},
		{pattern: "POST /volumes", handle: later("volumes are"), needs: can(rbac.Volume, rbac.Create)},
		{pattern: "GET /secrets", handle: s.e2bSecrets, each: true, needs: can(rbac.Secret, rbac.Read)},
		{pattern: "POST /secrets", handle: s.e2bCreateSecret, each: true, needs: can(rbac.Secret, rbac.Create)},
		{pattern: "GET /secrets/{secret}", handle: s.e2bSecret, each: true, needs: can(rbac.Secret, rbac.Read)},
		{pattern: "POST /secrets/{secret}", handle: s.e2bUpdateSecret, each: true, needs: can(rbac.Secret, rbac.Update)},
		{pattern: "DELETE /secrets/{secret}", handle: s.e2bDeleteSecret, each: true, needs: can(rbac.Secret, rbac.Delete)},

		{pattern: "GET /v1/health", handle: s.health, open: true},
		{pattern: "GET /v1/version", handle: s.version, open: true},
		{pattern: "GET /v1/openapi.json", handle: s.openAPI, local: true, anyone: true},
		{pattern: "GET /v1/metrics", handle: s.showMetrics, local: true, needs: can(rbac.System, rbac.Read)},
		{pattern: "GET /v1/nodes", handle: s.nodes, needs: can(rbac.Node, rbac.Read)},
		{pattern: "GET /v1/nodes/{node}", handle: s.oneNode, needs: can(rbac.Node, rbac.Read)},
		{pattern: "POST /v1/nodes/{node}/drain", handle: s.orderNode(state.NodeDrain), needs: can(rbac.Node, rbac.Update)},
		{pattern: "POST /v1/nodes/{node}/mark", handle: s.orderNode(state.NodeUnhealthy), needs: can(rbac.Node, rbac.Update)},
		{pattern: "POST /v1/nodes/{node}/resume", handle: s.orderNode(""), needs: can(rbac.Node, rbac.Update)},
		{pattern: "GET /v1/rebalance", handle: s.showRebalance, needs: can(rbac.Node, rbac.Read)},
		{pattern: "POST /v1/rebalance", handle: s.rebalance, needs: can(rbac.Node, rbac.Update)},
		{pattern: "GET /v1/events", handle: s.events, stream: true, each: true, needs: can(rbac.Sandbox, rbac.Read)},

		{pattern: "GET /v1/quotas/{tenant}", handle: s.getQuota, needs: can(rbac.Quota, rbac.Read)},
		{pattern: "PUT /v1/quotas/{tenant}", handle: s.putQuota, needs: can(rbac.Quota, rbac.Update)},
		{pattern: "GET /v1/quotas/{tenant}/usage", handle: s.quotaUsage, needs: can(rbac.Quota, rbac.Read)},
		{pattern: "GET /v1/audit", handle: s.auditEvents, local: true, needs: can(rbac.Audit, rbac.Read)},
		{pattern: "GET /v1/audit/stream", handle: s.auditStream, local: true, stream: true, needs: can(rbac.Audit, rbac.Read)},
		{pattern: "GET /v1/audit/head", handle: s.auditHead, local: true, needs: can(rbac.Audit, rbac.Read)},
		{pattern: "PUT /v1/sandboxes/{id}/limits", handle: s.setLimits, needs: can(rbac.Sandbox, rbac.Update)},
		{pattern: "GET /v1/sandboxes/{id}/network", handle: s.getNetwork, needs: can(rbac.Network, rbac.Read)},
		{pattern: "PUT /v1/sandboxes/{id}/network", handle: s.putNetwork, needs: can(rbac.Network, rbac.Update)},
		{pattern: "PUT /v1/sandboxes/{id}/network/shape", handle: s.shapeNetwork, needs: can(rbac.Network, rbac.Update)},
		{pattern: "PUT /v1/sandboxes/{id}/network/join", handle: s.joinNetworks, needs: can(rbac.Network, rbac.Update)},
		{pattern: "POST /v1/sandboxes/{id}/network/dry-run", handle: s.dryRunNetwork, needs: can(rbac.Network, rbac.Read)},
		{pattern: "POST /v1/sandboxes/{id}/network/test", handle: s.testNetwork, needs: can(rbac.Network, rbac.Read)},
		{pattern: "GET /v1/sandboxes/{id}/published", handle: s.getPublished, needs: can(rbac.Network, rbac.Read)},
		{pattern: "PUT /v1/sandboxes/{id}/published", handle: s.putPublished, needs: can(rbac.Network, rbac.Update)},
		{pattern: "GET /v1/sandboxes/{id}/health", handle: s.sandboxHealth, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v1/sandboxes/{id}/stats", handle: s.stats, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v1/sandboxes/{id}/metrics", handle: s.sandboxMetrics, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v1/sandboxes/{id}/logs", handle: s.logs, stream: true, needs: can(rbac.Sandbox, rbac.Read)},

		{pattern: "GET /v1/sandboxes/{id}/log", handle: s.sandboxLog, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v1/sandboxes/{id}/log/stream", handle: s.logStream, stream: true, needs: can(rbac.Sandbox, rbac.Read)},

		{pattern: "POST /v1/sandboxes/{id}/links", handle: s.createLink, needs: can(rbac.File, rbac.Create)},
		{pattern: "GET /v1/sandboxes/{id}/archive", handle: s.readArchive, stream: true, needs: can(rbac.File, rbac.Read)},
		{pattern: "PUT /v1/sandboxes/{id}/archive", handle: s.writeArchive, stream: true, needs: can(rbac.File, rbac.Update)},

		{pattern: "PUT /v1/uploads", handle: s.uploadBuildFiles, tickets: true, stream: true, needs: can(rbac.Template, rbac.Create)},

		{pattern: "POST /v1/snapshots", handle: s.takeSnapshot, needs: can(rbac.Snapshot, rbac.Create)},
		{pattern: "GET /v1/snapshots", handle: s.snapshots, needs: can(rbac.Snapshot, rbac.Read)},
		{pattern: "GET /v1/snapshots/{snapshot}", handle: s.snapshot, needs: can(rbac.Snapshot, rbac.Read)},
		{pattern: "DELETE /v1/snapshots/{snapshot}", handle: s.deleteSnapshot, needs: can(rbac.Snapshot, rbac.Delete)},

		{pattern: "GET /v1/pools", handle: s.pools, needs: can(rbac.Pool, rbac.Read)},
		{pattern: "POST /v1/pools", handle: s.createPool, needs: can(rbac.Pool, rbac.Create)},
		{pattern: "GET /v1/pools/{name}", handle: s.pool, needs: can(rbac.Pool, rbac.Read)},
		{pattern: "PATCH /v1/pools/{name}", handle: s.changePool, needs: can(rbac.Pool, rbac.Update)},
		{pattern: "DELETE /v1/pools/{name}", handle: s.deletePool, needs: can(rbac.Pool, rbac.Delete)},

		{pattern: "POST /v1/terminals", handle: s.createTerminal, each: true, needs: can(rbac.Sandbox, rbac.Execute)},
		{pattern: "GET /v1/terminals", handle: s.listTerminals, each: true, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "GET /v1/terminals/{id}", handle: s.getTerminal, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "DELETE /v1/terminals/{id}", handle: s.deleteTerminal, needs: can(rbac.Sandbox, rbac.Execute)},
		{pattern: "POST /v1/terminals/{id}/ticket", handle: s.terminalTicket, needs: can(rbac.Sandbox, rbac.Connect)},
		{pattern: "GET /v1/terminals/{id}/attach", handle: s.attachTerminal, tickets: true, stream: true, needs: can(rbac.Sandbox, rbac.Connect)},

		{pattern: "GET /v1/auth/whoami", handle: s.whoami, anyone: true},
		{pattern: "POST /v1/auth/explain", handle: s.explain, anyone: true},
		{pattern: "GET /v1/auth/links", handle: s.authLinks, open: true},
		{pattern: "GET /v1/keys", handle: s.keys, needs: can(rbac.Key, rbac.Read)},
		{pattern: "POST /v1/keys", handle: s.createKey, needs: can(rbac.Key, rbac.Create)},
		{pattern: "PATCH /v1/keys/{key}", handle: s.changeKey, needs: can(rbac.Key, rbac.Update)},
		{pattern: "DELETE /v1/keys/{key}", handle: s.deleteKey, needs: can(rbac.Key, rbac.Delete)},
		{pattern: "GET /v1/roles", handle: s.roles, needs: can(rbac.Key, rbac.Read)},
		{pattern: "GET /v1/roles/{role}", handle: s.role, needs: can(rbac.Key, rbac.Read)},
		{pattern: "PUT /v1/roles/{role}", handle: s.putRole, needs: can(rbac.Key, rbac.Update)},
		{pattern: "DELETE /v1/roles/{role}", handle: s.deleteRole, needs: can(rbac.Key, rbac.Delete)},
		{pattern: "GET /v1/bindings", handle: s.bindings, needs: can(rbac.Key, rbac.Read)},
		{pattern: "POST /v1/bindings", handle: s.createBinding, needs: can(rbac.Key, rbac.Create)},
		{pattern: "DELETE /v1/bindings/{binding}", handle: s.deleteBinding, needs: can(rbac.Key, rbac.Delete)},
		{pattern: "GET /v1/tenants", handle: s.tenants, needs: can(rbac.Tenant, rbac.Read)},
		{pattern: "POST /v1/tenants", handle: s.createTenant, needs: can(rbac.Tenant, rbac.Create)},
		{pattern: "GET /v1/tenants/{tenant}", handle: s.tenant, needs: can(rbac.Tenant, rbac.Read)},
		{pattern: "PATCH /v1/tenants/{tenant}", handle: s.updateTenant, needs: can(rbac.Tenant, rbac.Update)},
		{pattern: "PUT /v1/tenants/{tenant}/network", handle: s.setTenantNetwork, needs: can(rbac.Network, rbac.Admin)},
		{pattern: "POST /v1/tenants/{tenant}/suspend", handle: s.suspendTenant, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "POST /v1/tenants/{tenant}/resume", handle: s.resumeTenant, needs: can(rbac.Tenant, rbac.Admin)},
		{pattern: "DELETE /v1/tenants/{tenant}", handle: s.deleteTenant, needs: can(rbac.Tenant, rbac.Delete)},

		{pattern: "GET /v1/templates", handle: s.templates, each: true, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /v1/templates/{name}", handle: s.template, needs: can(rbac.Template, rbac.Read)},
		{pattern: "GET /v1/operator/snapshot", handle: s.saveState, stream: true, needs: can(rbac.System, rbac.Admin)},
		{pattern: "PUT /v1/operator/snapshot", handle: s.restoreState, stream: true, needs: can(rbac.System, rbac.Admin)},
		{pattern: "GET /v1/operator/raft", handle: s.controlServers, needs: can(rbac.System, rbac.Read)},
		{pattern: "GET /v1/operator/autopilot/state", handle: s.autopilotState, needs: can(rbac.System, rbac.Read)},
		{pattern: "GET /v1/operator/autopilot/configuration", handle: s.autopilotConfig, needs: can(rbac.System, rbac.Read)},
		{pattern: "PUT /v1/operator/autopilot/configuration", handle: s.setAutopilot, needs: can(rbac.System, rbac.Admin)},
		{pattern: "DELETE /v1/operator/raft/{server}", handle: s.removeControlServer, needs: can(rbac.System, rbac.Admin)},
		{pattern: "PUT /v1/templates/{name}", handle: s.importTemplate, stream: true, needs: can(rbac.Template, rbac.Create)},
		{pattern: "PUT /v1/templates/{name}/network", handle: s.templateNetwork, needs: can(rbac.Template, rbac.Update)},
		{pattern: "PUT /v1/templates/{name}/placement", handle: s.templatePlacement, needs: can(rbac.Template, rbac.Update)},
		{pattern: "DELETE /v1/templates/{name}", handle: s.deleteTemplate, needs: can(rbac.Template, rbac.Delete)},
	}...)
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
