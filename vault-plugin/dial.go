package soulboxsecrets

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// remote is the control service over its API.
type remote struct {
	client *api.Client
	self   string // id of the client's own key
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
	client, err := api.New(api.Config{
		Address: c.Address, APIKey: c.APIKey, UserAgent: "vault-plugin-secrets-soulbox", HTTPClient: &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, err
	}
	return &remote{client: client, self: keyID(c.APIKey)}, nil
}

// Self implements service.
func (r *remote) Self(ctx context.Context) (apiKey, error) {
	teams, err := r.client.Tenants(ctx)
	if err != nil {
		return apiKey{}, fmt.Errorf("tenant of the engine's key: %w", err)
	}
	if len(teams) == 0 {
		return apiKey{}, errors.New("the engine's key acts in no tenant")
	}
	return apiKey{ID: r.self, Tenant: teams[0].TeamID}, nil
}

// CreateKey implements service.
func (r *remote) CreateKey(ctx context.Context, k apiKey) (apiKey, error) {
	own, err := r.Self(ctx)
	if err != nil {
		return apiKey{}, err
	}
	if k.Tenant != own.Tenant {
		return apiKey{}, api.Errorf(http.StatusForbidden, api.CodeInvalid, "the engine's key makes keys of tenant %s only, not of %s", own.Tenant, k.Tenant)
	}
	made, err := r.client.CreateAPIKey(ctx, api.NewAPIKey{Name: k.Name})
	if err != nil {
		return apiKey{}, fmt.Errorf("create API key %s: %w", k.Name, err)
	}
	k.ID, k.Secret = keyID(made.Key), ownSpelling(made.Key)
	if k.ID == "" {
		return apiKey{}, fmt.Errorf("create API key %s: the answer holds no key", k.Name)
	}
	return k, nil
}

// FindKeys implements service.
func (r *remote) FindKeys(ctx context.Context, _, name string) ([]string, error) {
	list, err := r.client.APIKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
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
func (r *remote) DeleteKey(ctx context.Context, _, id string) error {
	if err := r.client.DeleteAPIKey(ctx, id); err != nil && api.StatusOf(err) != http.StatusNotFound {
		return fmt.Errorf("delete API key %s: %w", id, err)
	}
	return nil
}

// Close implements service.
func (r *remote) Close() { r.client.Close() }
