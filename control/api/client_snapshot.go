package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// PauseSandbox pauses a running sandbox: its processes, memory and files are kept, or, with filesOnly, its files.
func (c *Client) PauseSandbox(ctx context.Context, id SandboxID, filesOnly bool) error {
	return c.call(ctx, http.MethodPost, e2bPath(id, "/pause"), nil, PauseRequest{Memory: withMemory(filesOnly)}, nil)
}

// ResumeSandbox lets a paused sandbox go on for d (whole seconds, rounded up). With filesOnly it is booted anew from its files, whatever
// else was kept.
func (c *Client) ResumeSandbox(ctx context.Context, id SandboxID, d time.Duration, filesOnly bool) (SandboxAccess, error) {
	secs := seconds(d)
	var out SandboxAccess
	return out, c.call(ctx, http.MethodPost, e2bPath(id, "/resume"), nil, ResumeRequest{Timeout: &secs, Memory: withMemory(filesOnly)}, &out)
}

// withMemory is the contract's member: missing where memory counts.
func withMemory(filesOnly bool) *bool {
	if !filesOnly {
		return nil
	}
	no := false
	return &no
}

// ForkSandbox makes count running copies of a sandbox, each of which lives for d.
func (c *Client) ForkSandbox(ctx context.Context, id SandboxID, count int, d time.Duration) ([]ForkResult, error) {
	secs, n := seconds(d), int64(count)
	var out []ForkResult
	return out, c.call(ctx, http.MethodPost, e2bPath(id, "/fork"), nil, ForkRequest{Timeout: &secs, Count: &n}, &out)
}

// CreateSnapshot takes a snapshot of a sandbox, which goes on as it was.
func (c *Client) CreateSnapshot(ctx context.Context, req SnapshotRequest) (Snapshot, error) {
	var out Snapshot
	return out, c.call(ctx, http.MethodPost, "/v1/snapshots", nil, req, &out)
}

// SnapshotFilter selects snapshots; zero fields select all.
type SnapshotFilter struct {
	SandboxID SandboxID
	Name      string // "name" or "name:tag"
	Label     string // "key" or "key=value"
	State     string // making, ready or failed
}

// Snapshots lists snapshots, the newest first.
func (c *Client) Snapshots(ctx context.Context, f SnapshotFilter) ([]Snapshot, error) {
	q := url.Values{}
	for name, v := range map[string]string{"sandbox_id": string(f.SandboxID), "name": f.Name, "label": f.Label, "state": f.State} {
		if v != "" {
			q.Set(name, v)
		}
	}
	var out []Snapshot
	return out, c.call(ctx, http.MethodGet, "/v1/snapshots", q, nil, &out)
}

// GetSnapshot returns a snapshot by its id, its name or "name:tag".
func (c *Client) GetSnapshot(ctx context.Context, ref string) (Snapshot, error) {
	var out Snapshot
	return out, c.call(ctx, http.MethodGet, "/v1/snapshots/"+url.PathEscape(ref), nil, nil, &out)
}

// DeleteSnapshot removes a snapshot and its data. One that sandboxes were made from which have not ended is a conflict, unless
// force.
func (c *Client) DeleteSnapshot(ctx context.Context, ref string, force bool) error {
	return c.call(ctx, http.MethodDelete, "/v1/snapshots/"+url.PathEscape(ref), url.Values{"force": {strconv.FormatBool(force)}}, nil, nil)
}

func e2bPath(id SandboxID, rest string) string {
	return "/sandboxes/" + url.PathEscape(string(id)) + rest
}
