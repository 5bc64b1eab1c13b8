package api

import "time"

// Headers of every request of this package's client. A service refuses one that is too old and tells what it needs; a
// request without them is served.
const (
	TenantHeader        = "SoulBox-Tenant"         // the tenant to act in, where the caller has a role in another than his own
	ClientVersionHeader = "SoulBox-Client-Version" // semantic version
	APIVersionHeader    = "SoulBox-API-Version"    // number
	RequestIDHeader     = "X-Request-Id"           // of every answer; a client may choose it
	AgeHeader           = "SoulBox-Age-Ms"         // of an answer to a read with the parameter stale: how far it may lag, in milliseconds
)

// ServiceHealth is the answer of GET /v1/health.
type ServiceHealth struct {
	Status        string `json:"status"` // HealthOK or HealthUnhealthy
	UptimeSeconds int64  `json:"uptime_seconds"`
	Version       string `json:"version"`
	Reason        string `json:"reason,omitempty"` // why it is not healthy
}

// VersionInfo is the answer of GET /v1/version.
type VersionInfo struct {
	Version       string `json:"version"`
	Commit        string `json:"commit,omitempty"`
	APIVersion    int    `json:"api_version"`
	MinAPIVersion int    `json:"min_api_version"`
	MinClient     string `json:"min_client"` // oldest client that is served
}

// States of a node.
const (
	NodeHealthy    = "healthy"
	NodeDegraded   = "degraded"   // sandboxes can be made there, but something is wrong
	NodeDraining   = "draining"   // an operator wants it empty: nothing new, and what runs there moves away
	NodeConnecting = "connecting" // the service has no connection to it
	NodeUnhealthy  = "unhealthy"  // nothing can be made there, or an operator has said so
)

// NodeCheck is how one thing is that a node needs.
type NodeCheck struct {
	Name   string `json:"name"`   // runtime, checkpoint, disk, network, cgroups or clock
	Status string `json:"status"` // passing, warning or critical
	Output string `json:"output"` // one line for people
}

// NodeMark is what an operator has said about a node.
type NodeMark struct {
	Status string    `json:"status"` // NodeDraining or NodeUnhealthy
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at"`
}

// NodeReason is the body of POST /v1/nodes/{node}/drain and /mark. It may be missing.
type NodeReason struct {
	Reason string `json:"reason,omitempty"` // for people; at most 1024 bytes
}

// Node is a machine that sandboxes run on, as GET /v1/nodes shows it.
type Node struct {
	ID          NodeID      `json:"id"`
	Name        string      `json:"name"`
	Address     string      `json:"address"`
	Version     string      `json:"version"`
	APIVersion  int         `json:"api_version"`
	Status      string      `json:"status"`       // one of the Node* states; it does not flap
	StatusSince time.Time   `json:"status_since"` // when that began
	Connected   bool        `json:"connected"`    // the service has a connection to it
	Healthy     bool        `json:"healthy"`
	Reason      string      `json:"reason,omitempty"`    // why its status is what it is; empty where it is healthy
	Directory   string      `json:"directory,omitempty"` // what health checks say: passing, critical, unknown
	Kernel      string      `json:"kernel"`
	CPUs        int         `json:"cpus"`
	MemoryBytes int64       `json:"memory_bytes"`
	DiskBytes   int64       `json:"disk_bytes"`
	DiskFree    int64       `json:"disk_free_bytes"`
	Running     int         `json:"running"`
	MaxSandbox  int         `json:"max_sandboxes"`
	StartedAt   time.Time   `json:"started_at,omitzero"`
	Mark        *NodeMark   `json:"mark,omitempty"` // what an operator has said
	Checks      []NodeCheck `json:"checks"`
	Probes      []Probe     `json:"probes"`
	Templates   []string    `json:"templates"` // names that it holds
}

// ProbeNetwork is the name of the probe that says whether a node's sandboxes have a network beside their loopback.
const ProbeNetwork = "sandbox_network"

// Probe is the answer of one kernel feature probe of a node.
type Probe struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Value  string `json:"value,omitempty"`
	Reason string `json:"reason,omitempty"` // why not, and the minimum version
	Needed bool   `json:"needed"`           // without it no sandbox can start
}

// Event is one line of GET /v1/events: a sandbox of the caller's tenant as it is after a change. Changes that follow each
// other fast may come as one. A stream starts with an EventSync.
type Event struct {
	Index   uint64    `json:"index"` // grows
	Time    time.Time `json:"time"`
	Type    string    `json:"type"` // EventSync, EventChanged, EventRemoved, EventBeat
	Sandbox *Sandbox  `json:"sandbox,omitempty"`
	// Sandboxes are all that exist, where Type is EventSync.
	Sandboxes []Sandbox `json:"sandboxes,omitempty"`
}

// Values of Event.Type.
const (
	EventSync    = "sync"
	EventChanged = "changed"
	EventRemoved = "removed" // forgotten, some time after it ended
	EventBeat    = "beat"    // at least every 15 s
)
