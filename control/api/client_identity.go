package api

import (
	"context"
	"net/http"
	"net/url"
)

// Whoami tells who the client is for the service.
func (c *Client) Whoami(ctx context.Context) (Whoami, error) {
	var out Whoami
	return out, c.call(ctx, http.MethodGet, "/v1/auth/whoami", nil, nil, &out)
}

// Explain tells whether the client may do something, and which rule decides.
func (c *Client) Explain(ctx context.Context, q ExplainRequest) (Explanation, error) {
	var out Explanation
	return out, c.call(ctx, http.MethodPost, "/v1/auth/explain", nil, q, &out)
}

// AuthLinks lists the issuers that people can log in with. It needs no key.
func (c *Client) AuthLinks(ctx context.Context) ([]AuthLink, error) {
	var out []AuthLink
	return out, c.call(ctx, http.MethodGet, "/v1/auth/links", nil, nil, &out)
}

// ListTenants lists the tenants that the client has a role in.
func (c *Client) ListTenants(ctx context.Context) ([]Tenant, error) {
	var out []Tenant
	return out, c.call(ctx, http.MethodGet, "/v1/tenants", nil, nil, &out)
}

// GetTenant returns one tenant.
func (c *Client) GetTenant(ctx context.Context, id string) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodGet, tenantPath(id), nil, nil, &out)
}

// CreateTenant makes a tenant.
func (c *Client) CreateTenant(ctx context.Context, t NewTenant) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodPost, "/v1/tenants", nil, t, &out)
}

// UpdateTenant changes a tenant.
func (c *Client) UpdateTenant(ctx context.Context, id string, change TenantChange) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodPatch, tenantPath(id), nil, change, &out)
}

// SetTenantNetwork says what a tenant's sandboxes may reach at most by the tenant's own word. The answer is as that to a change of NetworkBound.
func (c *Client) SetTenantNetwork(ctx context.Context, id string, p NetworkPolicy) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodPut, tenantPath(id)+"/network", nil, p, &out)
}

// SuspendTenant lets a tenant do no new work. What runs goes on.
func (c *Client) SuspendTenant(ctx context.Context, id, reason string) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodPost, tenantPath(id)+"/suspend", nil, SuspendRequest{Reason: reason}, &out)
}

// ResumeTenant ends a suspension.
func (c *Client) ResumeTenant(ctx context.Context, id string) (Tenant, error) {
	var out Tenant
	return out, c.call(ctx, http.MethodPost, tenantPath(id)+"/resume", nil, nil, &out)
}

// DeleteTenant forgets a tenant. One that owns anything is refused, unless cascade; one with live sandboxes always.
func (c *Client) DeleteTenant(ctx context.Context, id string, cascade bool) error {
	q := url.Values{}
	if cascade {
		q.Set("cascade", "true")
	}
	return c.call(ctx, http.MethodDelete, tenantPath(id), q, nil, nil)
}

func tenantPath(id string) string { return "/v1/tenants/" + url.PathEscape(id) }

// everywhere is the query that names the scope of roles and bindings.
func everywhere(yes bool) url.Values {
	q := url.Values{}
	if yes {
		q.Set("everywhere", "true")
	}
	return q
}

// Roles lists the roles that the tenant's bindings may name: its own, those of all tenants, and the built-in ones.
func (c *Client) Roles(ctx context.Context) ([]Role, error) {
	var out []Role
	return out, c.call(ctx, http.MethodGet, "/v1/roles", nil, nil, &out)
}

// Role returns the role that a name means in the tenant.
func (c *Client) Role(ctx context.Context, name string) (Role, error) {
	var out Role
	return out, c.call(ctx, http.MethodGet, "/v1/roles/"+url.PathEscape(name), nil, nil, &out)
}

// PutRole makes or replaces a role.
func (c *Client) PutRole(ctx context.Context, name string, role RolePut) (Role, error) {
	var out Role
	return out, c.call(ctx, http.MethodPut, "/v1/roles/"+url.PathEscape(name), nil, role, &out)
}

// DeleteRole forgets a role that nothing refers to.
func (c *Client) DeleteRole(ctx context.Context, name string, all bool) error {
	return c.call(ctx, http.MethodDelete, "/v1/roles/"+url.PathEscape(name), everywhere(all), nil, nil)
}

// Bindings lists the bindings of the tenant, or those Everywhere.
func (c *Client) Bindings(ctx context.Context, all bool) ([]Binding, error) {
	var out []Binding
	return out, c.call(ctx, http.MethodGet, "/v1/bindings", everywhere(all), nil, &out)
}

// CreateBinding gives a role to subjects.
func (c *Client) CreateBinding(ctx context.Context, b NewBinding) (Binding, error) {
	var out Binding
	return out, c.call(ctx, http.MethodPost, "/v1/bindings", nil, b, &out)
}

// DeleteBinding takes a role back.
func (c *Client) DeleteBinding(ctx context.Context, id string, all bool) error {
	return c.call(ctx, http.MethodDelete, "/v1/bindings/"+url.PathEscape(id), everywhere(all), nil, nil)
}

// Keys lists the API keys of the tenant.
func (c *Client) Keys(ctx context.Context) ([]Key, error) {
	var out []Key
	return out, c.call(ctx, http.MethodGet, "/v1/keys", nil, nil, &out)
}

// CreateKey makes an API key. The secret is in this answer only.
func (c *Client) CreateKey(ctx context.Context, k NewKey) (CreatedKey, error) {
	var out CreatedKey
	return out, c.call(ctx, http.MethodPost, "/v1/keys", nil, k, &out)
}

// ChangeKey changes what a key may do, and for how long.
func (c *Client) ChangeKey(ctx context.Context, id string, change KeyChange) (Key, error) {
	var out Key
	return out, c.call(ctx, http.MethodPatch, "/v1/keys/"+url.PathEscape(id), nil, change, &out)
}

// DeleteKey revokes an API key at once.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, nil, nil)
}
