package api

import "encoding/json"

// AssignTags is the body of POST /templates/tags.
type AssignTags struct {
	Target string   `json:"target"` // a template's name, with a tag or without
	Tags   []string `json:"tags"`
}

// AssignedTags is the answer of POST /templates/tags.
type AssignedTags struct {
	Tags    []string `json:"tags"`
	BuildID string   `json:"buildID"`
}

// RemoveTags is the body of DELETE /templates/tags.
type RemoveTags struct {
	Name string   `json:"name"`
	Tags []string `json:"tags"`
}

// TemplateUpdate is the body of PATCH /templates/{id} and PATCH /v2/templates/{id}.
type TemplateUpdate struct {
	Public *bool `json:"public,omitempty"`
}

// TemplateNames is the answer of PATCH /v2/templates/{id}: under which names everybody finds the template while it is public.
type TemplateNames struct {
	Names []string `json:"names"`
}

// BuildRequest is the body of POST /v3/templates.
type BuildRequest struct {
	Name     string   `json:"name,omitempty"` // may have a tag
	Alias    string   `json:"alias,omitempty"`
	Tags     []string `json:"tags,omitempty"`
	CPUCount *int64   `json:"cpuCount,omitempty"` // whole cores
	MemoryMB *int64   `json:"memoryMB,omitempty"` // MiB
}

// RequestedBuild is the answer of POST /v3/templates.
type RequestedBuild struct {
	TemplateID string   `json:"templateID"`
	BuildID    string   `json:"buildID"`
	Public     bool     `json:"public"`
	Names      []string `json:"names"`
	Tags       []string `json:"tags"`
	Aliases    []string `json:"aliases"`
}

// BuildUpload is the answer of GET /templates/{id}/files/{hash}: whether the files are there, and where to PUT them as a tar.
type BuildUpload struct {
	Present bool              `json:"present"`
	URL     string            `json:"url,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
}

// BuildInstructions is the body of POST /v2/templates/{id}/builds/{build}.
type BuildInstructions struct {
	FromImage         string          `json:"fromImage,omitempty"`
	FromTemplate      string          `json:"fromTemplate,omitempty"`
	FromImageRegistry json.RawMessage `json:"fromImageRegistry,omitempty"`
	Force             bool            `json:"force,omitempty"`
	Steps             []BuildStep     `json:"steps,omitempty"`
	StartCmd          string          `json:"startCmd,omitempty"`
	ReadyCmd          string          `json:"readyCmd,omitempty"`
}

// BuildStep is an element of BuildInstructions.Steps.
type BuildStep struct {
	Type      string   `json:"type"` // COPY, ENV, RUN, WORKDIR or USER
	Args      []string `json:"args,omitempty"`
	FilesHash string   `json:"filesHash,omitempty"` // of COPY
	Force     bool     `json:"force,omitempty"`
}

// Values of TemplateBuildInfo.Status.
const (
	BuildWaiting  = "waiting" // for its instructions
	BuildBuilding = "building"
	BuildReady    = "ready"
	BuildError    = "error"
)

// BuildReason says why a build failed.
type BuildReason struct {
	Message    string          `json:"message"`
	Step       string          `json:"step,omitempty"` // its number from 1 on, base or finalize
	LogEntries []BuildLogEntry `json:"logEntries"`
}

// BuildLogs is the answer of GET /templates/{id}/builds/{build}/logs.
type BuildLogs struct {
	Logs []BuildLogEntry `json:"logs"`
}
