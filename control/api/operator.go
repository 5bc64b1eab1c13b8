package api

import (
	"context"
	"io"
	"net/http"
	"time"
)

const operatorSnapshot = "/v1/operator/snapshot"

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
