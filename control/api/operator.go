package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"
)

const (
	operatorSnapshot = "/v1/operator/snapshot"
	operatorRaft     = "/v1/operator/raft"

	operatorAutopilotState  = "/v1/operator/autopilot/state"
	operatorAutopilotConfig = "/v1/operator/autopilot/configuration"
)

// Restored is the answer of PUT /v1/operator/snapshot: what the backup was of.
type Restored struct {
	Index  uint64    `json:"index"` // of the last change in it
	At     time.Time `json:"at"`    // when it was made
	Server string    `json:"server"`
	Bytes  int64     `json:"bytes"`
}

// SaveState opens a backup of everything that the service keeps. It holds tokens and hashes of keys: keep it as a secret. Its end is a checksum, which
// RestoreState checks. The caller closes it.
func (c *Client) SaveState(ctx context.Context) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, operatorSnapshot, nil, nil, "")
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// RestoreState puts a backup in the place of everything that the service keeps. Sandboxes that it does not know of end.
func (c *Client) RestoreState(ctx context.Context, r io.Reader) (Restored, error) {
	var out Restored
	return out, c.upload(ctx, operatorSnapshot, nil, r, "application/octet-stream", &out)
}

// ControlServer is a server of the control service, as the one that leads sees it.
type ControlServer struct {
	ID       string  `json:"id"`
	Address  string  `json:"address"` // host:port on which the others reach it
	Leader   bool    `json:"leader"`
	Voter    bool    `json:"voter"`
	Healthy  bool    `json:"healthy"`   // it answers the one that leads
	SilentMs float64 `json:"silent_ms"` // since when it does not
}

// ControlServers is the answer of GET /v1/operator/raft.
type ControlServers struct {
	Servers []ControlServer `json:"servers"`
	// FailureTolerance is how many of those that answer may fail before nothing can be changed any more.
	FailureTolerance int `json:"failure_tolerance"`
}

// ControlServers returns the servers of the control service.
func (c *Client) ControlServers(ctx context.Context) (ControlServers, error) {
	var out ControlServers
	return out, c.call(ctx, http.MethodGet, operatorRaft, nil, nil, &out)
}

// RemoveControlServer takes a server that will not come back out of the cluster.
func (c *Client) RemoveControlServer(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, operatorRaft+"/"+url.PathEscape(id), nil, nil, nil)
}

// AutopilotServer is how a server of the control service is, as the autopilot of the one that leads sees it.
type AutopilotServer struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Leader  bool   `json:"leader"`
	Voter   bool   `json:"voter"` // a server that has joined gets its vote once it has been healthy for a while
	Healthy bool   `json:"healthy"`
	// LastContactMs is how long ago it last heard from the one that leads; -1: nobody knows.
	LastContactMs float64    `json:"last_contact_ms"`
	LastTerm      uint64     `json:"last_term"`  // of its log
	LastIndex     uint64     `json:"last_index"` // of its log
	StableSince   *time.Time `json:"stable_since,omitempty"`
	FailedSince   *time.Time `json:"failed_since,omitempty"` // while it is not healthy
}

// AutopilotState is the answer of GET /v1/operator/autopilot/state.
type AutopilotState struct {
	Healthy          bool              `json:"healthy"`           // all servers are
	FailureTolerance int               `json:"failure_tolerance"` // healthy voters that may fail before nothing can be changed any more
	Leader           string            `json:"leader"`
	Voters           []string          `json:"voters"`
	Servers          []AutopilotServer `json:"servers"`
}

// AutopilotConfig is the answer of GET /v1/operator/autopilot/configuration: the settings of the cluster, which are those of the file of the server that leads until they
// are changed.
type AutopilotConfig struct {
	CleanupDeadServers bool `json:"cleanup_dead_servers"`
	// DeadServerLastContactMs is how long a server must be silent until it is removed.
	DeadServerLastContactMs   int64  `json:"dead_server_last_contact_threshold_ms"`
	LastContactMs             int64  `json:"last_contact_threshold_ms"` // of a healthy server
	MaxTrailingLogs           uint64 `json:"max_trailing_logs"`         // of a healthy server
	MinQuorum                 uint   `json:"min_quorum"`                // voters that there are left after a removal
	ServerStabilizationTimeMs int64  `json:"server_stabilization_time_ms"`
}

// AutopilotChange is PUT /v1/operator/autopilot/configuration, answered with AutopilotConfig: what is left out stays. From then on it is what all servers go by, and
// their files count no more.
type AutopilotChange struct {
	CleanupDeadServers        *bool   `json:"cleanup_dead_servers,omitempty"`
	DeadServerLastContactMs   *int64  `json:"dead_server_last_contact_threshold_ms,omitempty"`
	LastContactMs             *int64  `json:"last_contact_threshold_ms,omitempty"`
	MaxTrailingLogs           *uint64 `json:"max_trailing_logs,omitempty"`
	MinQuorum                 *uint   `json:"min_quorum,omitempty"`
	ServerStabilizationTimeMs *int64  `json:"server_stabilization_time_ms,omitempty"`
}

// SetAutopilotConfig changes by which rules the servers of the control service are kept.
func (c *Client) SetAutopilotConfig(ctx context.Context, change AutopilotChange) (AutopilotConfig, error) {
	var out AutopilotConfig
	return out, c.call(ctx, http.MethodPut, operatorAutopilotConfig, nil, change, &out)
}

// AutopilotState returns how the servers of the control service are.
func (c *Client) AutopilotState(ctx context.Context) (AutopilotState, error) {
	var out AutopilotState
	return out, c.call(ctx, http.MethodGet, operatorAutopilotState, nil, nil, &out)
}

// AutopilotConfig returns by which rules the servers of the control service are kept.
func (c *Client) AutopilotConfig(ctx context.Context) (AutopilotConfig, error) {
	var out AutopilotConfig
	return out, c.call(ctx, http.MethodGet, operatorAutopilotConfig, nil, nil, &out)
}
