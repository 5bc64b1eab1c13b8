package api

import (
	"context"
	"net/http"
	"net/url"
)

// Pools lists the pools of the tenant; of all tenants, for who may see them.
func (c *Client) Pools(ctx context.Context) ([]Pool, error) {
	var out []Pool
	return out, c.call(ctx, http.MethodGet, "/v1/pools", nil, nil, &out)
}

// Pool returns a pool by its name.
func (c *Client) Pool(ctx context.Context, name string) (Pool, error) {
	var out Pool
	return out, c.call(ctx, http.MethodGet, poolPath(name), nil, nil, &out)
}

// CreatePool makes a pool. Its slots come in the background.
func (c *Client) CreatePool(ctx context.Context, p NewPool) (Pool, error) {
	var out Pool
	return out, c.call(ctx, http.MethodPost, "/v1/pools", nil, p, &out)
}

// ChangePool changes what is given of a pool. Slots that do not fit any more are replaced.
func (c *Client) ChangePool(ctx context.Context, name string, change PoolSpec) (Pool, error) {
	var out Pool
	return out, c.call(ctx, http.MethodPatch, poolPath(name), nil, change, &out)
}

// DeletePool forgets a pool and ends its slots. Sandboxes that came from it go on.
func (c *Client) DeletePool(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, poolPath(name), nil, nil, nil)
}

func poolPath(name string) string { return "/v1/pools/" + url.PathEscape(name) }
