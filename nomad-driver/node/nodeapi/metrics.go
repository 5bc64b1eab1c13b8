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
// between the two times (RFC 3339, both included, either may be missing), oldest first.
type Sample = api.Sample

// Samples returns what a sandbox used from start to end; a zero time is an open end. It is empty before the first sample,
// which comes within one interval of the sandbox's start.
func (c *Client) Samples(ctx context.Context, id api.SandboxID, start, end time.Time) ([]Sample, error) {
	var s []Sample
	return s, c.call(ctx, http.MethodGet, sandboxPath(id, "/metrics"), api.TimeRange(start, end), nil, &s)
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
