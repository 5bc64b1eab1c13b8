package server

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
)

// operationDoc says what a route takes and gives, for the OpenAPI document. The types are the handlers' own.
type operationDoc struct {
	summary string
	query   string // names of parameters, between spaces; a "!" behind one that must be there
	in      any    // of a JSON body; nil: none
	out     any    // of a JSON answer; nil: none
	status  int    // of success; 0: 200 with out, else 204
	media   string // of a body or an answer that is no JSON
}

// operations documents every route. A test holds that none is missing.
var operations = map[string]operationDoc{
	"GET /health":                     {summary: "Whether the service serves"},
	"POST /sandboxes":                 {summary: "Create a sandbox; 15 s unless timeout says otherwise", in: api.NewSandbox{}, out: api.SandboxAccess{}, status: 201},
	"POST /v2/sandboxes":              {summary: "Create a sandbox; 300 s unless timeout says otherwise", in: api.NewSandbox{}, out: api.SandboxAccess{}, status: 201},
	"GET /sandboxes":                  {summary: "List running sandboxes", query: "metadata", out: []api.ListedSandbox{}},
	"GET /v2/sandboxes":               {summary: "List sandboxes, a page at a time", query: "metadata state order startedAfter template limit nextToken soulbox", out: []api.ListedSandbox{}},
	"GET /sandboxes/metrics":          {summary: "The last metrics of several sandboxes", query: "sandbox_ids!", out: api.SandboxesMetrics{}},
	"GET /sandboxes/{id}":             {summary: "One sandbox; with soulbox=true an ended one too", query: "soulbox", out: api.SandboxDetail{}},
	"GET /sandboxes/{id}/metrics":     {summary: "Metrics of a sandbox over a time", query: "start end", out: []api.SandboxMetric{}},
	"DELETE /sandboxes/{id}":          {summary: "End a sandbox"},
	"POST /sandboxes/{id}/timeout":    {summary: "Move a sandbox's deadline, earlier or later", in: api.TimeoutRequest{}},
	"POST /sandboxes/{id}/refreshes":  {summary: "Move a sandbox's deadline, later only", in: api.RefreshRequest{}},
	"POST /sandboxes/{id}/connect":    {summary: "Come back to a sandbox", in: api.ConnectRequest{}, out: api.SandboxAccess{}},
	"POST /v2/sandboxes/{id}/connect": {summary: "Come back to a sandbox", in: api.ConnectRequest{}, out: api.SandboxAccess{}},
	"PUT /sandboxes/{id}/network":     {summary: "Replace a sandbox's network settings", in: api.NetworkUpdate{}},
	"POST /sandboxes/{id}/pause":      {summary: "Pause a sandbox: its processes, memory and files are kept, or with memory false its files", in: api.PauseRequest{}},
	"POST /sandboxes/{id}/resume":     {summary: "Let a paused sandbox go on", in: api.ResumeRequest{}, out: api.SandboxAccess{}, status: 201},
	"POST /sandboxes/{id}/fork":       {summary: "Make running copies of a sandbox", in: api.ForkRequest{}, out: []api.ForkResult{}, status: 201},
	"POST /sandboxes/{id}/snapshots":  {summary: "Take a snapshot of a sandbox", in: api.NewSnapshot{}, out: api.SnapshotInfo{}, status: 201},
	"GET /snapshots":                  {summary: "List snapshots, a page at a time", query: "sandboxID name limit nextToken", out: []api.SnapshotInfo{}},
	"GET /sandboxes/{id}/logs":        {summary: "Log entries from a time on", query: "start limit", out: api.SandboxLogs{}},
	"GET /v2/sandboxes/{id}/logs":     {summary: "Log entries, in either direction from a time", query: "cursor limit direction level search", out: api.SandboxLogsV2{}},

	"GET /templates":                           {summary: "List templates", out: []api.E2BTemplate{}},
	"GET /v2/templates":                        {summary: "List templates, a page at a time", query: "limit nextToken", out: []api.E2BTemplate{}},
	"GET /templates/{tid}":                     {summary: "One template with its builds", out: api.TemplateWithBuilds{}},
	"DELETE /templates/{tid}":                  {summary: "Delete a template"},
	"GET /templates/{tid}/{what}":              {summary: "The tags of a template, as /templates/{tid}/tags, or the template of an alias, as /templates/aliases/{alias}"},
	"GET /templates/{tid}/builds/{bid}/status": {summary: "How a build goes", query: "logsOffset limit level", out: api.TemplateBuildInfo{}},
	"GET /templates/{tid}/builds/{bid}/logs":   {summary: "A page of a build's log", query: "cursor limit direction level", out: api.BuildLogs{}},
	"PATCH /templates/{tid}":                   {summary: "Publish a template", in: api.TemplateUpdate{}, out: struct{}{}},
	"PATCH /v2/templates/{tid}":                {summary: "Publish a template", in: api.TemplateUpdate{}, out: api.TemplateNames{}},
	"POST /templates/tags":                     {summary: "Tag a template", in: api.AssignTags{}, out: api.AssignedTags{}, status: 201},
	"DELETE /templates/tags":                   {summary: "Take tags off a template", in: api.RemoveTags{}},
	"POST /v3/templates":                       {summary: "Ask for a build of a template", in: api.BuildRequest{}, out: api.RequestedBuild{}, status: 202},
	"POST /v2/templates":                       {summary: "Build a template", status: 501},
	"POST /templates":                          {summary: "Build a template", status: 501},
	"GET /templates/{tid}/files/{hash}":        {summary: "Where to upload the files of a build", out: api.BuildUpload{}, status: 201},
	"POST /v2/templates/{tid}/builds/{bid}":    {summary: "Start a build", in: api.BuildInstructions{}, status: 202},
	"GET /teams":                               {summary: "The caller's tenant", out: []api.Team{}},
	"GET /teams/{team}/metrics":                {summary: "How many sandboxes the tenant had, and started", query: "start end", out: []api.TeamMetric{}},
	"GET /teams/{team}/metrics/max":            {summary: "The largest value of one of them", query: "start end metric", out: api.MaxTeamMetric{}},
	"POST /admin/teams/{team}/builds/cancel":   {summary: "End all builds of the tenant", out: api.CancelledBuilds{}},
	"GET /nodes":                               {summary: "List nodes", query: "clusterID", out: []api.E2BNode{}},
	"GET /nodes/{node}":                        {summary: "One node", query: "clusterID", out: api.E2BNode{}},
	"POST /nodes/{node}":                       {summary: "Have a node drained, marked as unhealthy, or used again", in: api.E2BNodeStatus{}},
	"GET /api-keys":                            {summary: "List API keys", out: []api.TeamAPIKey{}},
	"POST /api-keys":                           {summary: "Create an API key; its secret is in this answer only", in: api.NewAPIKey{}, out: api.CreatedTeamAPIKey{}, status: 201},
	"PATCH /api-keys/{key}":                    {summary: "Rename an API key", in: api.APIKeyUpdate{}, out: api.TeamAPIKey{}},
	"DELETE /api-keys/{key}":                   {summary: "Revoke an API key"},
	"POST /access-tokens":                      {summary: "No more served", status: 410},
	"DELETE /access-tokens/{token}":            {summary: "No more served", status: 410},

	"POST /admin/teams/{tenant}/sandboxes/kill":   {summary: "End all sandboxes of a tenant", out: api.KilledSandboxes{}, status: 200},
	"GET /admin/sandboxes/running-counts":         {summary: "How many sandboxes run, by tenant", out: map[string]int{}},
	"POST /admin/teams/{tenant}/api-keys":         {summary: "Create an API key of a tenant", in: api.NewAPIKey{}, out: api.CreatedTeamAPIKey{}, status: 201},
	"DELETE /admin/teams/{tenant}/api-keys/{key}": {summary: "Revoke an API key of a tenant"},

	"GET /volumes":             {summary: "List volumes", out: []struct{}{}},
	"POST /volumes":            {summary: "Create a volume", status: 501},
	"GET /secrets":             {summary: "List secrets, without their values", query: "nextToken limit", out: []api.Secret{}},
	"POST /secrets":            {summary: "Create a secret", in: api.NewSecret{}, out: api.Secret{}, status: 201},
	"GET /secrets/{secret}":    {summary: "Show a secret, without its value", out: api.Secret{}},
	"POST /secrets/{secret}":   {summary: "Give a secret its next version", in: api.SecretValue{}, out: api.Secret{}},
	"DELETE /secrets/{secret}": {summary: "Delete a secret"},

	"GET /v1/health":               {summary: "How the service is", out: api.ServiceHealth{}},
	"GET /v1/version":              {summary: "Versions of the service and its API", out: api.VersionInfo{}},
	"GET /v1/openapi.json":         {summary: "This document", media: "application/json"},
	"GET /v1/metrics":              {summary: "The service's own metrics, for Prometheus", media: "text/plain"},
	"GET /v1/nodes":                {summary: "List nodes", out: []api.Node{}},
	"GET /v1/nodes/{node}":         {summary: "One node, with how each thing is that it needs", out: api.Node{}},
	"POST /v1/nodes/{node}/drain":  {summary: "Have what runs on a node move away, and nothing new come", in: api.NodeReason{}, out: api.Node{}},
	"POST /v1/nodes/{node}/mark":   {summary: "Have nothing new come to a node: it counts as unhealthy", in: api.NodeReason{}, out: api.Node{}},
	"GET /v1/rebalance":            {summary: "How nodes are loaded, and which sandboxes would be moved", query: "moves classes", out: api.Rebalance{}},
	"POST /v1/rebalance":           {summary: "Move sandboxes from full nodes to empty ones", in: api.RebalanceRequest{}, out: api.Rebalance{}},
	"POST /v1/nodes/{node}/resume": {summary: "Use a node again that was drained or marked", out: api.Node{}},
	"GET /v1/events":               {summary: "Changes of sandboxes as they happen, one JSON object a line", media: "application/x-ndjson"},

	"GET /v1/quotas/{tenant}":                 {summary: "What a tenant may use; the tenant \"*\" is the default", out: api.Quota{}},
	"PUT /v1/quotas/{tenant}":                 {summary: "Replace what a tenant may use", in: api.QuotaRequest{}, out: api.Quota{}, status: 200},
	"GET /v1/quotas/{tenant}/usage":           {summary: "What a tenant uses", out: api.QuotaUsage{}},
	"GET /v1/audit":                           {summary: "Events of this server's audit log, a page at a time", query: "after before tenant user action resource result request order limit from", out: api.AuditEvents{}},
	"GET /v1/audit/stream":                    {summary: "Events as they are stored, one JSON object a line, or as server-sent events", query: "after before tenant user action resource result request from", media: "application/x-ndjson"},
	"GET /v1/audit/head":                      {summary: "How far the audit log goes, and the public keys that it is signed with", out: api.AuditState{}},
	"PUT /v1/sandboxes/{id}/limits":           {summary: "Change limits of a running sandbox", in: api.LimitsRequest{}, out: api.Sandbox{}},
	"GET /v1/sandboxes/{id}/network":          {summary: "A sandbox's network: addresses, policy, counters, last denials", out: api.NetworkStatus{}},
	"PUT /v1/sandboxes/{id}/network":          {summary: "Replace what a running sandbox may reach", in: api.NetworkPolicy{}, out: api.NetworkStatus{}},
	"PUT /v1/sandboxes/{id}/network/shape":    {summary: "Change how a running sandbox's link carries packets: rate, delay, loss", in: api.NetworkShape{}, out: api.NetworkStatus{}},
	"POST /v1/sandboxes/{id}/network/test":    {summary: "What would become of a connection, and by which rule", in: api.NetworkTest{}, out: api.NetworkVerdict{}},
	"PUT /v1/sandboxes/{id}/network/join":     {summary: "Replace the private networks that a running sandbox is in", in: api.NetworkJoin{}, out: api.NetworkStatus{}},
	"POST /v1/sandboxes/{id}/network/dry-run": {summary: "What a policy would make of a sandbox's connections and of what was denied to it", in: api.NetworkPolicy{}, out: api.NetworkDryRun{}},
	"GET /v1/sandboxes/{id}/published":        {summary: "Ports of a sandbox that its node listens for", out: api.PublishedPorts{}},
	"PUT /v1/sandboxes/{id}/published":        {summary: "Replace which TCP and UDP ports of a running sandbox its node listens for", in: api.PublishedPorts{}, out: api.PublishedPorts{}},
	"GET /v1/sandboxes/{id}/health":           {summary: "Whether a sandbox answers", out: api.SandboxHealth{}},
	"GET /v1/sandboxes/{id}/stats":            {summary: "The kernel's counters of a sandbox", out: api.Stats{}},
	"GET /v1/sandboxes/{id}/metrics":          {summary: "Samples of a sandbox over a time", query: "start end", out: []api.Sample{}},
	"GET /v1/sandboxes/{id}/logs":             {summary: "The output of a sandbox's own command, as it is", query: "stream offset follow tail", media: "application/octet-stream"},
	"GET /v1/sandboxes/{id}/log":              {summary: "Log entries by time, level, source and text", query: "after before level source search limit direction", out: []api.LogEntry{}},
	"GET /v1/sandboxes/{id}/log/stream":       {summary: "Log entries, history first, as server-sent events or over a WebSocket", query: "after level source search", media: "text/event-stream"},

	"GET /v1/sandboxes/{id}/envd/files":                           {summary: "Read a file, as envd's GET /files", query: "path! username", media: "application/octet-stream"},
	"POST /v1/sandboxes/{id}/envd/files":                          {summary: "Write a file, as envd's POST /files; the header Soulbox-Mode has its permission bits", query: "path! username", media: "application/octet-stream", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Stat":     {summary: "What a path is, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/ListDir":  {summary: "List a folder, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/WatchDir": {summary: "What happens in a folder, as it happens, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/MakeDir":  {summary: "Make a folder, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Move":     {summary: "Rename a file or a folder, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/filesystem.Filesystem/Remove":   {summary: "Remove a file or a folder, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/List":           {summary: "List processes, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/Connect":        {summary: "Join a process, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/Start":          {summary: "Start a process, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/StreamInput":    {summary: "Write to a process, as it comes, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/SendInput":      {summary: "Write to a process, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/CloseStdin":     {summary: "End what a process reads, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/SendSignal":     {summary: "Signal a process, as envd's call of that name", media: "application/json", status: 200},
	"POST /v1/sandboxes/{id}/envd/process.Process/Update":         {summary: "Change the size of a process's terminal, as envd's call of that name", media: "application/json", status: 200},

	"POST /v1/sandboxes/{id}/links":  {summary: "Make a link to a file, good without a key", in: api.LinkRequest{}, out: api.Link{}, status: 201},
	"GET /v1/sandboxes/{id}/archive": {summary: "Read a folder as a tar", query: "path! user", media: "application/x-tar"},
	"PUT /v1/sandboxes/{id}/archive": {summary: "Unpack a tar into a folder", query: "path! user", media: "application/x-tar", status: 204},

	"GET /v1/operator/raft":                    {summary: "The servers of the control service, and which of them answer", out: api.ControlServers{}},
	"GET /v1/operator/autopilot/state":         {summary: "How the servers of the control service are", out: api.AutopilotState{}},
	"GET /v1/operator/autopilot/configuration": {summary: "By which rules servers get votes and are removed", out: api.AutopilotConfig{}},
	"PUT /v1/operator/autopilot/configuration": {summary: "Change by which rules servers get votes and are removed", in: api.AutopilotChange{}, out: api.AutopilotConfig{}},
	"DELETE /v1/operator/raft/{server}":        {summary: "Take a server that will not come back out of the cluster"},
	"GET /v1/operator/snapshot":                {summary: "Save everything that the service keeps, secrets included", media: "application/octet-stream"},
	"PUT /v1/operator/snapshot":                {summary: "Put a backup in the place of everything that the service keeps", media: "application/octet-stream", out: api.Restored{}},
	"PUT /v1/uploads":                          {summary: "Upload the files of a build, for whoever has the ticket", query: "ticket!", media: "application/octet-stream", status: 200},

	"POST /v1/snapshots":              {summary: "Take a snapshot of a sandbox", in: api.SnapshotRequest{}, out: api.Snapshot{}, status: 201},
	"GET /v1/snapshots":               {summary: "List snapshots, the newest first", query: "sandbox_id name label state", out: []api.Snapshot{}},
	"GET /v1/snapshots/{snapshot}":    {summary: "One snapshot, by id, name or name:tag", out: api.Snapshot{}},
	"DELETE /v1/snapshots/{snapshot}": {summary: "Delete a snapshot and its data", query: "force"},

	"GET /v1/pools":           {summary: "List pools of warm sandboxes", out: []api.Pool{}},
	"POST /v1/pools":          {summary: "Make a pool; its sandboxes come in the background", in: api.NewPool{}, out: api.Pool{}, status: 201},
	"GET /v1/pools/{name}":    {summary: "One pool, and how it is", out: api.Pool{}},
	"PATCH /v1/pools/{name}":  {summary: "Change what is given of a pool", in: api.PoolSpec{}, out: api.Pool{}},
	"DELETE /v1/pools/{name}": {summary: "Forget a pool and end the sandboxes that nobody has taken"},

	"POST /v1/terminals":             {summary: "Start a terminal", in: api.TerminalRequest{}, out: api.Terminal{}, status: 201},
	"GET /v1/terminals":              {summary: "List a sandbox's terminals", query: "sandbox_id!", out: []api.Terminal{}},
	"GET /v1/terminals/{id}":         {summary: "One terminal", out: api.Terminal{}},
	"DELETE /v1/terminals/{id}":      {summary: "Kill a terminal's process"},
	"POST /v1/terminals/{id}/ticket": {summary: "A ticket that opens one WebSocket, for browsers", out: api.TerminalTicket{}, status: 201},
	"GET /v1/terminals/{id}/attach":  {summary: "Attach to a terminal; the connection becomes a WebSocket", query: "offset mode ticket", status: 101},

	"GET /v1/auth/whoami":               {summary: "Who the caller is, and where he has roles", out: api.Whoami{}},
	"POST /v1/auth/explain":             {summary: "Whether the caller may do something, and which rule decides", in: api.ExplainRequest{}, out: api.Explanation{}},
	"GET /v1/auth/links":                {summary: "The issuers that people can log in with", out: []api.AuthLink{}},
	"GET /v1/keys":                      {summary: "List API keys", out: []api.Key{}},
	"POST /v1/keys":                     {summary: "Create an API key; its secret is in this answer only", in: api.NewKey{}, out: api.CreatedKey{}, status: 201},
	"PATCH /v1/keys/{key}":              {summary: "Change an API key's name, owner, roles or end", in: api.KeyChange{}, out: api.Key{}},
	"DELETE /v1/keys/{key}":             {summary: "Revoke an API key at once"},
	"GET /v1/roles":                     {summary: "List the roles that bindings may name", out: []api.Role{}},
	"GET /v1/roles/{role}":              {summary: "One role", out: api.Role{}},
	"PUT /v1/roles/{role}":              {summary: "Make or replace a role", in: api.RolePut{}, out: api.Role{}},
	"DELETE /v1/roles/{role}":           {summary: "Delete a role that nothing refers to", query: "everywhere"},
	"GET /v1/bindings":                  {summary: "List bindings", query: "everywhere", out: []api.Binding{}},
	"POST /v1/bindings":                 {summary: "Give a role to subjects", in: api.NewBinding{}, out: api.Binding{}, status: 201},
	"DELETE /v1/bindings/{binding}":     {summary: "Take a role back", query: "everywhere"},
	"GET /v1/tenants":                   {summary: "List the tenants that the caller has a role in", out: []api.Tenant{}},
	"POST /v1/tenants":                  {summary: "Create a tenant", in: api.NewTenant{}, out: api.Tenant{}, status: 201},
	"GET /v1/tenants/{tenant}":          {summary: "One tenant", out: api.Tenant{}},
	"PATCH /v1/tenants/{tenant}":        {summary: "Change a tenant", in: api.TenantChange{}, out: api.Tenant{}},
	"PUT /v1/tenants/{tenant}/network":  {summary: "Replace what a tenant's sandboxes may reach by its own word", in: api.NetworkPolicy{}, out: api.Tenant{}},
	"POST /v1/tenants/{tenant}/suspend": {summary: "Let a tenant do no new work", in: api.SuspendRequest{}, out: api.Tenant{}},
	"POST /v1/tenants/{tenant}/resume":  {summary: "End a suspension", out: api.Tenant{}},
	"DELETE /v1/tenants/{tenant}":       {summary: "Delete a tenant, with what it owns where asked", query: "cascade"},

	"GET /v1/templates":                  {summary: "List templates", out: []api.Template{}},
	"GET /v1/templates/{name}":           {summary: "One template", out: api.Template{}},
	"PUT /v1/templates/{name}":           {summary: "Make a template of a tar stream", query: "source", media: "application/x-tar", out: api.Template{}, status: 201},
	"PUT /v1/templates/{name}/network":   {summary: "Replace what sandboxes of a template may reach that are made from then on", in: api.NetworkPolicy{}, out: api.Template{}},
	"PUT /v1/templates/{name}/placement": {summary: "Replace where sandboxes of a template may run that are made from then on", in: api.Placement{}, out: api.Template{}},
	"DELETE /v1/templates/{name}":        {summary: "Delete a template's name"},
}

// openAPI is GET /v1/openapi.json.
func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, document(s.routes()))
	return nil
}

type object = map[string]any

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

// document describes the routes as OpenAPI 3.1.
func document(routes []route) object {
	g := schemas{}
	paths := object{}
	failure := object{"description": "What is wrong", "content": object{"application/json": object{"schema": g.of(reflect.TypeFor[api.Error]())}}}
	for _, rt := range routes {
		method, path, _ := strings.Cut(rt.pattern, " ")
		d := operations[rt.pattern]
		if rt.staleable() {
			d.query += " stale"
		}
		op := object{"summary": d.summary, "responses": object{"default": failure, d.code(): d.answer(g)}}
		if rt.open {
			op["security"] = []object{}
		}
		if p := d.parameters(path); len(p) > 0 {
			op["parameters"] = p
		}
		if body := d.body(g, method); body != nil {
			op["requestBody"] = body
		}
		at, _ := paths[path].(object)
		if at == nil {
			at = object{}
			paths[path] = at
		}
		at[strings.ToLower(method)] = op
	}
	return object{
		"openapi": "3.1.0",
		"info":    object{"title": "SoulBox", "version": version.Version, "license": object{"name": "MPL-2.0"}},
		"paths":   paths, "security": []object{{"key": []string{}}, {"bearer": []string{}}},
		"components": object{"schemas": g, "securitySchemes": object{
			"key":    object{"type": "apiKey", "in": "header", "name": "X-API-Key"},
			"bearer": object{"type": "http", "scheme": "bearer"},
		}},
	}
}

func (d operationDoc) code() string {
	switch {
	case d.status != 0:
		return strconv.Itoa(d.status)
	case d.out != nil || d.media != "":
		return "200"
	}
	return "204"
}

func (d operationDoc) answer(g schemas) object {
	status, _ := strconv.Atoi(d.code()) // it is one
	a := object{"description": http.StatusText(status)}
	switch {
	case d.out != nil:
		a["content"] = object{"application/json": object{"schema": g.of(reflect.TypeOf(d.out))}}
	case d.media != "" && status == http.StatusOK:
		a["content"] = object{d.media: object{}}
	}
	return a
}

func (d operationDoc) body(g schemas, method string) object {
	switch {
	case d.in != nil:
		return object{"content": object{"application/json": object{"schema": g.of(reflect.TypeOf(d.in))}}}
	case d.media != "" && method == http.MethodPut:
		return object{"required": true, "content": object{d.media: object{}}}
	}
	return nil
}

func (d operationDoc) parameters(path string) []object {
	var out []object
	for _, m := range pathParam.FindAllStringSubmatch(path, -1) {
		out = append(out, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, name := range strings.Fields(d.query) {
		bare, must := strings.CutSuffix(name, "!")
		out = append(out, object{"name": bare, "in": "query", "required": must, "schema": object{"type": "string"}})
	}
	return out
}

// schemas are the named types that the document needs.
type schemas object

// of describes a Go type as its JSON.
func (g schemas) of(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[netip.Addr]():
		return object{"type": "string", "format": "ipv4"}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{}
	case t.Kind() == reflect.Pointer:
		return g.of(t.Elem())
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return object{"type": "string", "contentEncoding": "base64"}
		}
		return object{"type": "array", "items": g.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": g.of(t.Elem())}
	case reflect.Struct:
		if t.Name() == "" {
			return g.structure(t)
		}
		if _, known := g[t.Name()]; !known {
			g[t.Name()] = nil // ends the recursion
			g[t.Name()] = g.structure(t)
		}
		return object{"$ref": "#/components/schemas/" + t.Name()}
	case reflect.Interface:
		return object{}
	}
	return object{"type": "integer"}
}

func (g schemas) structure(t reflect.Type) object {
	props, required := object{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
			continue
		case f.Anonymous && name == "":
			inner := g.structure(deref(f.Type))
			for k, v := range inner["properties"].(object) { //nolint:forcetypeassert // made below
				props[k] = v
			}
			if r, ok := inner["required"].([]string); ok {
				required = append(required, r...)
			}
			continue
		case name == "":
			name = f.Name
		}
		props[name] = g.of(f.Type)
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	out := object{"type": "object", "properties": props}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}
