package nodeapi

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// Templates lists the templates of the node's store by name.
func (c *Client) Templates(ctx context.Context) ([]Template, error) {
	var t []Template
	return t, c.call(ctx, http.MethodGet, "/v1/templates", nil, nil, &t)
}

// Template returns one template by name or digest, or an error with status 404.
func (c *Client) Template(ctx context.Context, nameOrDigest string) (Template, error) {
	var t Template
	return t, c.call(ctx, http.MethodGet, "/v1/templates/"+url.PathEscape(nameOrDigest), nil, nil, &t)
}

// ImportTemplate stores the root file system in the tar stream r under name, in place of one that had it. Sandboxes that
// run keep theirs.
func (c *Client) ImportTemplate(ctx context.Context, name string, r io.Reader) (Template, error) {
	var t Template
	return t, c.upload(ctx, "/v1/templates/"+url.PathEscape(name), nil, r, "application/x-tar", &t)
}

// ProcessDefaults are what processes of a template's sandboxes get where nobody says otherwise.
type ProcessDefaults struct {
	User string
	Cwd  string
	Env  []string // KEY=VALUE
}

// BuildTemplate is ImportTemplate with defaults of its own.
func (c *Client) BuildTemplate(ctx context.Context, name string, d ProcessDefaults, r io.Reader) (Template, error) {
	q := url.Values{"env": d.Env}
	if d.User != "" {
		q.Set("user", d.User)
	}
	if d.Cwd != "" {
		q.Set("cwd", d.Cwd)
	}
	var t Template
	return t, c.upload(ctx, "/v1/templates/"+url.PathEscape(name), q, r, "application/x-tar", &t)
}

// NameTemplate gives a template that the node has one more name.
func (c *Client) NameTemplate(ctx context.Context, name, digest string) (Template, error) {
	var t Template
	return t, c.upload(ctx, "/v1/templates/"+url.PathEscape(name), url.Values{"digest": {digest}}, nil, "application/x-tar", &t)
}

// ExportTemplate opens a template as a tar stream. The caller closes it.
func (c *Client) ExportTemplate(ctx context.Context, nameOrDigest string) (io.ReadCloser, error) {
	return c.download(ctx, "/v1/templates/"+url.PathEscape(nameOrDigest)+"/export", nil)
}

// RemoveTemplate removes a name from the store. Its content goes with its last name and its last sandbox.
func (c *Client) RemoveTemplate(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/v1/templates/"+url.PathEscape(name), nil, nil, nil)
}

// RemoveOwnTemplate removes a tenant's own copy of a template: DELETE /v1/templates/{digest}/own/{tenant}. One that a sandbox uses is a conflict; one that
// is not there is no error.
func (c *Client) RemoveOwnTemplate(ctx context.Context, o OwnTemplate) error {
	return c.call(ctx, http.MethodDelete, "/v1/templates/"+url.PathEscape(o.Digest)+"/own/"+url.PathEscape(o.Tenant), nil, nil, nil)
}
