package nodeapi

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// MaxLatest is how many sandboxes one Latest asks for at most.
const MaxLatest = 1000

// Sample is what a sandbox used at a moment: GET /v1/sandboxes/{id}/metrics?start=T&end=T answers with those of its window
// between the two times (RFC 3339, both included, either may be missing), oldest first. A field whose counter the kernel
// lacks is 0. Counters only grow, from the sandbox's start on.
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
	NetIn       uint64    `json:"net_in_bytes"`
	NetOut      uint64    `json:"net_out_bytes"`
	Processes   uint64    `json:"processes"` // and threads
}

// Samples returns what a sandbox used from start to end; a zero time is an open end. It is empty before the first sample,
// which comes within one interval of the sandbox's start.
func (c *Client) Samples(ctx context.Context, id api.SandboxID, start, end time.Time) ([]Sample, error) {
	q := url.Values{}
	for name, t := range map[string]time.Time{"start": start, "end": end} {
		if !t.IsZero() {
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
	}
	var s []Sample
	return s, c.call(ctx, http.MethodGet, sandboxPath(id, "/metrics"), q, nil, &s)
}

// Latest returns the newest sample of each of the sandboxes, at most MaxLatest: GET /v1/metrics/latest?ids=a,b. Those that
// do not run, or have no sample yet, are left out.
func (c *Client) Latest(ctx context.Context, ids []api.SandboxID) (map[api.SandboxID]Sample, error) {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = string(id)
	}
	var m map[api.SandboxID]Sample
	return m, c.call(ctx, http.MethodGet, "/v1/metrics/latest", url.Values{"ids": {strings.Join(words, ",")}}, nil, &m)
}
