package api

import (
	"context"
	"net/http"
	"net/url"
)

// Tenants returns the tenants that the client's key acts in.
func (c *Client) Tenants(ctx context.Context) ([]Team, error) {
	var out []Team
	return out, c.call(ctx, http.MethodGet, "/teams", nil, nil, &out)
}

// CreateAPIKey makes an API key in the tenant of the client's own. The secret is in this answer only.
func (c *Client) CreateAPIKey(ctx context.Context, req NewAPIKey) (CreatedTeamAPIKey, error) {
	var out CreatedTeamAPIKey
	return out, c.call(ctx, http.MethodPost, "/api-keys", nil, req, &out)
}

// APIKeys lists the keys of the tenant of the client's own.
func (c *Client) APIKeys(ctx context.Context) ([]TeamAPIKey, error) {
	var out []TeamAPIKey
	return out, c.call(ctx, http.MethodGet, "/api-keys", nil, nil, &out)
}

// DeleteAPIKey takes a key away, by its id in either spelling. It is refused from then on.
func (c *Client) DeleteAPIKey(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/api-keys/"+url.PathEscape(id), nil, nil, nil)
}
