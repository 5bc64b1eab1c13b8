package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Sample is what a sandbox used at a moment, an element of GET /v1/sandboxes/{id}/metrics?start=T&end=T (RFC 3339, both
// included, either may be missing; oldest first). A field whose counter the node's kernel lacks is 0. Counters only grow, from
// the sandbox's start on.
type Sample struct {
	Time        time.Time `json:"time"`
	CPUPercent  float64   `json:"cpu_percent"` // since the sample before; 100 is one core
	CPUNanos    uint64    `json:"cpu_nanos"`
	CPUMillis   uint64    `json:"cpu_millis"`   // limit in thousandths of a core, or the machine's cores
	MemoryBytes uint64    `json:"memory_bytes"` // without the page cache that can be dropped
	MemoryCache uint64    `json:"memory_cache_bytes"`
	MemoryTotal uint64    `json:"memory_total_bytes"` // limit, or the machine's memory
	DiskRead    uint64    `json:"disk_read_bytes"`
	DiskWritten uint64    `json:"disk_written_bytes"`     // on cgroup v1 without what the page cache wrote back later
	DiskUsed    uint64    `json:"disk_used_bytes"`        // of its own layer
	DiskPartial bool      `json:"disk_partial,omitempty"` // DiskUsed is a lower bound: not all files were looked at
	DiskTotal   uint64    `json:"disk_total_bytes"`       // limit, or the size of the file system
	NetIn       uint64    `json:"net_in_bytes"`           // of all interfaces but loopback
	NetOut      uint64    `json:"net_out_bytes"`
	Processes   uint64    `json:"processes"` // and threads
}

// SandboxMetric is the contract's object of that name: an element of GET /sandboxes/{id}/metrics, and a value of
// SandboxesMetrics.Sandboxes.
type SandboxMetric struct {
	Timestamp     time.Time `json:"timestamp"` // the contract's old form of TimestampUnix
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"` // 100 is all of its processors in full
	MemUsed       uint64    `json:"memUsed"`    // bytes, as all that follow
	MemTotal      uint64    `json:"memTotal"`
	MemCache      uint64    `json:"memCache"`
	DiskUsed      uint64    `json:"diskUsed"`
	DiskTotal     uint64    `json:"diskTotal"`
}

// SandboxesMetrics is the answer of GET /sandboxes/metrics: the newest of each sandbox that runs and has any.
type SandboxesMetrics struct {
	Sandboxes map[SandboxID]SandboxMetric `json:"sandboxes"`
}

// MaxMetricsSandboxes is how many sandboxes one GET /sandboxes/metrics may name.
const MaxMetricsSandboxes = 100

// Metrics returns what a running sandbox used from start to end, as far back as its node keeps it; a zero time is an open end.
// It is empty until the first sample, some seconds after the start.
func (c *Client) Metrics(ctx context.Context, id SandboxID, start, end time.Time) ([]Sample, error) {
	var out []Sample
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/metrics"), TimeRange(start, end), nil, &out)
}

// TimeRange is the query of a range of time; a zero time is an open end.
func TimeRange(start, end time.Time) url.Values {
	q := url.Values{}
	if !start.IsZero() {
		q.Set("start", start.UTC().Format(time.RFC3339Nano))
	}
	if !end.IsZero() {
		q.Set("end", end.UTC().Format(time.RFC3339Nano))
	}
	return q
}
