package soulboxsecrets

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// remote is the control service over its API.
type remote struct {
	cfg       config
	transport *http.Transport

	mu      sync.Mutex
	clients map[string]*api.Client // by the tenant that they act in; "": the key's own
}

var _ service = (*remote)(nil)

// dialService makes a client. It does not connect yet.
func dialService(c *config) (service, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: callTimeout, ResponseHeaderTimeout: callTimeout,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
	}
	if c.CA != "" {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, errors.New("ca holds no certificate in PEM")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	r := &remote{cfg: *c, transport: transport, clients: map[string]*api.Client{}}
	_, err := r.in("")
	return r, err
}

// in returns the client that acts in a tenant.
func (r *remote) in(tenant string) (*api.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.clients[tenant]; ok {
		return c, nil
	}
	c, err := api.New(api.Config{
		Address: r.cfg.Address, APIKey: r.cfg.APIKey, UserAgent: "vault-plugin-secrets-soulbox",
		HTTPClient: &http.Client{Transport: inTenant{r.transport, tenant}},
	})
	if err != nil {
		return nil, err
	}
	r.clients[tenant] = c
	return c, nil
}

// inTenant names the tenant of every request.
type inTenant struct {
	transport *http.Transport
	tenant    string
}

// RoundTrip implements http.RoundTripper.
func (t inTenant) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.tenant != "" {
		req = req.Clone(req.Context())
		req.Header.Set(api.TenantHeader, t.tenant)
	}
	return t.transport.RoundTrip(req)
}

// Self implements service.
func (r *remote) Self(ctx context.Context) (apiKey, error) {
	c, err := r.in("")
	if err != nil {
		return apiKey{}, err
	}
	who, err := c.Whoami(ctx)
	if err != nil {
		return apiKey{}, fmt.Errorf("the engine's key: %w", err)
	}
	return apiKey{ID: who.KeyID, Tenant: who.Tenant, Roles: who.Roles, Everywhere: who.Scope == api.Everywhere}, nil
}

// CreateKey implements service.
func (r *remote) CreateKey(ctx context.Context, k apiKey) (apiKey, error) {
	c, err := r.in(k.Tenant)
	if err != nil {
		return apiKey{}, err
	}
	made, err := c.CreateKey(ctx, api.NewKey{Name: k.Name, Roles: k.Roles, Everywhere: k.Everywhere, ExpiresAt: k.Expires})
	if err != nil {
		return apiKey{}, fmt.Errorf("create API key %s: %w", k.Name, err)
	}
	k.ID, k.Secret = made.ID, made.Secret
	if k.ID == "" || keyID(k.Secret) != k.ID {
		return apiKey{}, fmt.Errorf("create API key %s: the answer holds no key", k.Name)
	}
	return k, nil
}

// FindKeys implements service.
func (r *remote) FindKeys(ctx context.Context, tenant, name string) ([]string, error) {
	c, err := r.in(tenant)
	if err != nil {
		return nil, err
	}
	list, err := c.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list API keys of tenant %s: %w", tenant, err)
	}
	var ids []string
	for _, k := range list {
		if k.Name == name {
			ids = append(ids, k.ID)
		}
	}
	return ids, nil
}

// DeleteKey implements service.
func (r *remote) DeleteKey(ctx context.Context, tenant, id string) error {
	c, err := r.in(tenant)
	if err != nil {
		return err
	}
	if err := c.DeleteKey(ctx, id); err != nil && api.StatusOf(err) != http.StatusNotFound {
		return fmt.Errorf("delete API key %s: %w", id, err)
	}
	return nil
}

// Close implements service.
func (r *remote) Close() { r.transport.CloseIdleConnections() }
