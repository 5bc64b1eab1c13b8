package api

import (
	"encoding/json"
	"time"
)

// The types of this file are those of the E2B contract, field by field: names, types and which of them may be missing are
// the protocol's.

// NewSandbox is the body of POST /sandboxes and POST /v2/sandboxes.
type NewSandbox struct {
	TemplateID          string            `json:"templateID"`
	Timeout             *int64            `json:"timeout,omitempty"` // seconds
	AutoPause           bool              `json:"autoPause,omitempty"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory,omitempty"`
	AutoResume          *AutoResume       `json:"autoResume,omitempty"`
	Secure              *bool             `json:"secure,omitempty"` // v1 only
	AllowInternetAccess *bool             `json:"allow_internet_access,omitempty"`
	Network             *NetworkConfig    `json:"network,omitempty"`
	Metadata            map[string]string `json:"metadata,omitempty"`
	EnvVars             map[string]string `json:"envVars,omitempty"`
	MCP                 json.RawMessage   `json:"mcp,omitempty"`
	IAM                 *IAM              `json:"iam,omitempty"`
	VolumeMounts        []VolumeMount     `json:"volumeMounts,omitempty"`
	SoulBox             *CreateOptions    `json:"soulbox,omitempty"` // beyond the contract
}

// AutoResume is NewSandbox.AutoResume.
type AutoResume struct {
	Enabled *bool `json:"enabled"` // required
}

// NetworkConfig is NewSandbox.Network.
type NetworkConfig struct {
	AllowPublicTraffic *bool           `json:"allowPublicTraffic,omitempty"`
	AllowOut           []string        `json:"allowOut,omitempty"`
	DenyOut            []string        `json:"denyOut,omitempty"`
	EgressProxy        json.RawMessage `json:"egressProxy,omitempty"`
	MaskRequestHost    string          `json:"maskRequestHost,omitempty"`
	Rules              json.RawMessage `json:"rules,omitempty"`
	HTTPSPorts         []int           `json:"httpsPorts,omitempty"`
	SoulBox            *NetworkOptions `json:"soulbox,omitempty"` // beyond the contract
}

// NetworkOptions is NetworkConfig.SoulBox.
type NetworkOptions struct {
	Shape *NetworkShape   `json:"shape,omitempty"`
	Join  []NetworkMember `json:"join,omitempty"` // private networks that it is in
}

// IAM is NewSandbox.IAM.
type IAM struct {
	Tokens map[string]json.RawMessage `json:"tokens,omitempty"`
}

// VolumeMount is an element of NewSandbox.VolumeMounts.
type VolumeMount struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// SandboxAccess is the contract's object "Sandbox": the answer of create, connect and resume.
type SandboxAccess struct {
	TemplateID         string    `json:"templateID"`
	SandboxID          SandboxID `json:"sandboxID"`
	ClientID           string    `json:"clientID"`
	EnvdVersion        string    `json:"envdVersion"`
	Alias              string    `json:"alias,omitempty"`
	EnvdAccessToken    string    `json:"envdAccessToken,omitempty"`
	TrafficAccessToken *string   `json:"trafficAccessToken"` // null where there is none
	Domain             *string   `json:"domain"`             // null where there is none
	SoulBox            *Created  `json:"soulbox,omitempty"`  // beyond the contract, where a create asked for it
}

// ListedSandbox is an element of GET /v2/sandboxes and GET /sandboxes.
type ListedSandbox struct {
	TemplateID   string            `json:"templateID"`
	Alias        string            `json:"alias,omitempty"`
	SandboxID    SandboxID         `json:"sandboxID"`
	ClientID     string            `json:"clientID"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	CPUCount     int               `json:"cpuCount"`
	MemoryMB     int64             `json:"memoryMB"`
	DiskSizeMB   int64             `json:"diskSizeMB"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	State        string            `json:"state"` // running or paused
	EnvdVersion  string            `json:"envdVersion"`
	VolumeMounts []VolumeMount     `json:"volumeMounts,omitempty"`
	SoulBox      *Sandbox          `json:"soulbox,omitempty"` // beyond the contract, where the parameter soulbox asks for it
}

// SandboxDetail is the answer of GET /sandboxes/{id}.
type SandboxDetail struct {
	ListedSandbox
	EnvdAccessToken     string          `json:"envdAccessToken,omitempty"`
	AllowInternetAccess *bool           `json:"allowInternetAccess"` // null where it was not asked for
	Domain              *string         `json:"domain"`
	Network             json.RawMessage `json:"network,omitempty"`
	Lifecycle           LifecycleDetail `json:"lifecycle"`
}

// LifecycleDetail is SandboxDetail.Lifecycle.
type LifecycleDetail struct {
	AutoResume bool   `json:"autoResume"`
	OnTimeout  string `json:"onTimeout"` // kill or pause
}

// TimeoutRequest is the body of POST /sandboxes/{id}/timeout.
type TimeoutRequest struct {
	Timeout *int64 `json:"timeout"` // seconds from now; required
}

// RefreshRequest is the body of POST /sandboxes/{id}/refreshes. It may be missing.
type RefreshRequest struct {
	Duration *int64 `json:"duration,omitempty"` // seconds from now, at most MaxRefreshSeconds
}

// ConnectRequest is the body of POST /sandboxes/{id}/connect and its v2 form, where it may be missing.
type ConnectRequest struct {
	Timeout *int64 `json:"timeout,omitempty"` // seconds from now; required in v1
	Memory  *bool  `json:"memory,omitempty"`
}

// Defaults and limits of the contract, in seconds.
const (
	DefaultTimeoutSeconds   = 300 // POST /v2/sandboxes and POST /v2/sandboxes/{id}/connect
	DefaultTimeoutV1Seconds = 15  // POST /sandboxes
	DefaultRefreshSeconds   = 15
	MaxRefreshSeconds       = 3600
)

// NetworkUpdate is the body of PUT /sandboxes/{id}/network. It replaces all of these settings.
type NetworkUpdate struct {
	AllowOut            []string        `json:"allowOut,omitempty"`
	DenyOut             []string        `json:"denyOut,omitempty"`
	EgressProxy         json.RawMessage `json:"egressProxy,omitempty"`
	Rules               json.RawMessage `json:"rules,omitempty"`
	AllowInternetAccess *bool           `json:"allow_internet_access,omitempty"`
}

// E2BTemplate is the contract's object "Template".
type E2BTemplate struct {
	TemplateID    string     `json:"templateID"`
	BuildID       string     `json:"buildID"`
	CPUCount      int        `json:"cpuCount"`
	MemoryMB      int64      `json:"memoryMB"`
	DiskSizeMB    int64      `json:"diskSizeMB"`
	Public        bool       `json:"public"`
	Aliases       []string   `json:"aliases"` // as Names
	Names         []string   `json:"names"`
	CreatedAt     time.Time  `json:"createdAt"`
	UpdatedAt     time.Time  `json:"updatedAt"`
	CreatedBy     *string    `json:"createdBy"`     // null: users are not known
	LastSpawnedAt *time.Time `json:"lastSpawnedAt"` // null where no sandbox of it is kept
	SpawnCount    int64      `json:"spawnCount"`    // sandboxes of it that are kept, ended ones included
	BuildCount    int        `json:"buildCount"`
	EnvdVersion   string     `json:"envdVersion"`
	BuildStatus   string     `json:"buildStatus"`
}

// TemplateWithBuilds is the answer of GET /templates/{id}.
type TemplateWithBuilds struct {
	TemplateID    string          `json:"templateID"`
	Public        bool            `json:"public"`
	Aliases       []string        `json:"aliases"`
	Names         []string        `json:"names"`
	CreatedAt     time.Time       `json:"createdAt"`
	UpdatedAt     time.Time       `json:"updatedAt"`
	LastSpawnedAt *time.Time      `json:"lastSpawnedAt"`
	SpawnCount    int64           `json:"spawnCount"`
	Builds        []TemplateBuild `json:"builds"`
}

// TemplateBuild is an element of TemplateWithBuilds.Builds.
type TemplateBuild struct {
	BuildID     string     `json:"buildID"`
	Status      string     `json:"status"`
	CreatedAt   time.Time  `json:"createdAt"`
	UpdatedAt   time.Time  `json:"updatedAt"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
	CPUCount    int        `json:"cpuCount"`
	MemoryMB    int64      `json:"memoryMB"`
	DiskSizeMB  int64      `json:"diskSizeMB,omitempty"`
	EnvdVersion string     `json:"envdVersion,omitempty"`
}

// TemplateBuildInfo is the answer of GET /templates/{id}/builds/{build}/status.
type TemplateBuildInfo struct {
	TemplateID string          `json:"templateID"`
	BuildID    string          `json:"buildID"`
	Status     string          `json:"status"`
	Logs       []string        `json:"logs"`
	LogEntries []BuildLogEntry `json:"logEntries"`
	Reason     *BuildReason    `json:"reason,omitempty"` // of one that failed
}

// BuildLogEntry is a line of a build's log.
type BuildLogEntry struct {
	Timestamp time.Time `json:"timestamp"`
	Message   string    `json:"message"`
	Level     string    `json:"level"`
	Step      string    `json:"step,omitempty"`
}

// TemplateAlias is the answer of GET /templates/aliases/{alias}.
type TemplateAlias struct {
	TemplateID string `json:"templateID"`
	Public     bool   `json:"public"`
}

// TemplateTag is an element of GET /templates/{id}/tags.
type TemplateTag struct {
	Tag       string    `json:"tag"`
	BuildID   string    `json:"buildID"`
	CreatedAt time.Time `json:"createdAt"`
}

// Team is an element of GET /teams: a tenant.
type Team struct {
	TeamID    string `json:"teamID"`
	Name      string `json:"name"`
	APIKey    string `json:"apiKey"`
	IsDefault bool   `json:"isDefault"`
}

// TeamMetric is an element of GET /teams/{id}/metrics.
type TeamMetric struct {
	Timestamp           time.Time `json:"timestamp"`
	TimestampUnix       int64     `json:"timestampUnix"`
	ConcurrentSandboxes int       `json:"concurrentSandboxes"`
	SandboxStartRate    float64   `json:"sandboxStartRate"`
}

// MaxTeamMetric is the answer of GET /teams/{id}/metrics/max.
type MaxTeamMetric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	Value         float64   `json:"value"`
}

// CancelledBuilds is the answer of POST /admin/teams/{id}/builds/cancel.
type CancelledBuilds struct {
	CancelledCount int `json:"cancelledCount"`
	FailedCount    int `json:"failedCount"`
}

// NewAPIKey is the body of POST /api-keys.
type NewAPIKey struct {
	Name string `json:"name"`

	// What the contract does not have: as in NewKey.
	Tenant     string    `json:"tenant,omitempty"` // another than the caller acts in
	Owner      string    `json:"owner,omitempty"`
	Roles      []string  `json:"roles,omitempty"` // none: developer
	Everywhere bool      `json:"everywhere,omitempty"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
}

// APIKeyUpdate is the body of PATCH /api-keys/{key}.
type APIKeyUpdate struct {
	Name string `json:"name"`
}

// KilledSandboxes is the answer of POST /admin/teams/{tenant}/sandboxes/kill.
type KilledSandboxes struct {
	Killed int64 `json:"killedCount"`
	Failed int64 `json:"failedCount"`
}

// TeamAPIKey is an API key without its secret.
type TeamAPIKey struct {
	ID        string     `json:"id"` // a UUID
	Name      string     `json:"name"`
	Mask      KeyMask    `json:"mask"`
	CreatedAt time.Time  `json:"createdAt"`
	CreatedBy *string    `json:"createdBy"`
	LastUsed  *time.Time `json:"lastUsed"`
}

// KeyMask shows so much of a key that its holder knows it again.
type KeyMask struct {
	Prefix            string `json:"prefix"`
	ValueLength       int    `json:"valueLength"`
	MaskedValuePrefix string `json:"maskedValuePrefix"`
	MaskedValueSuffix string `json:"maskedValueSuffix"`
}

// CreatedTeamAPIKey is the answer of POST /api-keys: the one place where the secret is.
type CreatedTeamAPIKey struct {
	TeamAPIKey
	Key string `json:"key"`
}

// E2BNode is an element of GET /nodes.
type E2BNode struct {
	ID                   NodeID         `json:"id"`
	ServiceInstanceID    string         `json:"serviceInstanceID"` // new at every start of the node's daemon
	ClusterID            string         `json:"clusterID"`
	Version              string         `json:"version"`
	Commit               string         `json:"commit"`
	MachineInfo          E2BMachine     `json:"machineInfo"`
	Status               string         `json:"status"` // ready, draining, connecting or unhealthy
	StatusChangedAt      time.Time      `json:"statusChangedAt"`
	SandboxCount         int            `json:"sandboxCount"`
	SandboxStartingCount int            `json:"sandboxStartingCount"`
	CreateSuccesses      uint64         `json:"createSuccesses"`
	CreateFails          uint64         `json:"createFails"`
	Metrics              E2BNodeMetrics `json:"metrics"`
}

// E2BNodeStatus is the body of POST /nodes/{node}.
type E2BNodeStatus struct {
	Status    string `json:"status"` // ready, draining or unhealthy
	ClusterID string `json:"clusterID,omitempty"`
}

// E2BMachine is E2BNode.MachineInfo. What a node does not report is empty.
type E2BMachine struct {
	CPUFamily       string `json:"cpuFamily"`
	CPUModel        string `json:"cpuModel"`
	CPUModelName    string `json:"cpuModelName"`
	CPUArchitecture string `json:"cpuArchitecture"`
}

// E2BNodeMetrics is E2BNode.Metrics. What a node does not report is 0.
type E2BNodeMetrics struct {
	AllocatedCPU         int       `json:"allocatedCPU"`
	CPUPercent           int       `json:"cpuPercent"`
	CPUCount             int       `json:"cpuCount"`
	AllocatedMemoryBytes int64     `json:"allocatedMemoryBytes"`
	MemoryUsedBytes      int64     `json:"memoryUsedBytes"`
	MemoryTotalBytes     int64     `json:"memoryTotalBytes"`
	HugePagesTotal       int64     `json:"hugePagesTotal"`
	HugePagesUsed        int64     `json:"hugePagesUsed"`
	HugePagesReserved    int64     `json:"hugePagesReserved"`
	HugePageSizeBytes    int64     `json:"hugePageSizeBytes"`
	Disks                []E2BDisk `json:"disks"`
}

// E2BDisk is an element of E2BNodeMetrics.Disks.
type E2BDisk struct {
	MountPoint     string `json:"mountPoint"`
	Device         string `json:"device"`
	FilesystemType string `json:"filesystemType"`
	UsedBytes      int64  `json:"usedBytes"`
	TotalBytes     int64  `json:"totalBytes"`
}
