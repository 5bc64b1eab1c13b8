package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// NoLimit as the value of a limit means that there is none.
const NoLimit = -1

// DefaultQuota is the name in place of a tenant's for the limits of tenants that have none of their own.
const DefaultQuota = "*"

// Names of the limits of a tenant.
const (
	QuotaSandboxes  = "sandboxes"            // that have not ended, paused ones too
	QuotaConcurrent = "concurrent_sandboxes" // those that are not paused
	QuotaCPU        = "cpu_millis"           // thousandths of a core, of those
	QuotaMemory     = "memory_mb"            // MiB, of those
	QuotaStorage    = "storage_mb"           // MiB: disks of sandboxes, and stored snapshots
	QuotaTemplates  = "templates"
	QuotaSnapshots  = "snapshots"
	// Mbit/s that the links of sandboxes which are not paused may carry to them, and from them.
	QuotaBandwidthIn  = "bandwidth_in_mbit"
	QuotaBandwidthOut = "bandwidth_out_mbit"
	QuotaSecrets      = "secrets"
	QuotaCalls        = "api_calls_per_second" // on each server
	QuotaCreates      = "creates_per_second"   // on each server
)

// Quota is what a tenant may use.
type Quota struct {
	Tenant    string           `json:"tenant"`
	Limits    map[string]int64 `json:"limits"`    // its own; -1: none
	Effective map[string]int64 `json:"effective"` // what counts: its own, else the default; -1: none
	UpdatedAt time.Time        `json:"updated_at,omitzero"`
	UpdatedBy string           `json:"updated_by,omitempty"`
}

// QuotaRequest replaces a tenant's own limits. One that is not named is the default's.
type QuotaRequest struct {
	Limits map[string]int64 `json:"limits"`
}

// QuotaUsage is what a tenant uses, by limit.
type QuotaUsage struct {
	Tenant string                `json:"tenant"`
	Usage  map[string]LimitUsage `json:"usage"`
}

// LimitUsage is how much of a limit is used.
type LimitUsage struct {
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"` // -1: none
}

func quotaPath(tenant, rest string) string { return "/v1/quotas/" + url.PathEscape(tenant) + rest }

// Quota returns what a tenant may use.
func (c *Client) Quota(ctx context.Context, tenant string) (Quota, error) {
	var out Quota
	return out, c.call(ctx, http.MethodGet, quotaPath(tenant, ""), nil, nil, &out)
}

// SetQuota replaces a tenant's own limits, or the default ones.
func (c *Client) SetQuota(ctx context.Context, tenant string, limits map[string]int64) (Quota, error) {
	if limits == nil {
		limits = map[string]int64{}
	}
	var out Quota
	return out, c.call(ctx, http.MethodPut, quotaPath(tenant, ""), nil, QuotaRequest{Limits: limits}, &out)
}

// QuotaUsage returns what a tenant uses.
func (c *Client) QuotaUsage(ctx context.Context, tenant string) (QuotaUsage, error) {
	var out QuotaUsage
	return out, c.call(ctx, http.MethodGet, quotaPath(tenant, "/usage"), nil, nil, &out)
}
