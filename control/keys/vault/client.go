package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	vaultapi "github.com/hashicorp/vault/api"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Timeouts of calls. Somebody may wait for most of them, and nobody for a certificate, which is renewed long before it ends.
const (
	callTimeout  = time.Second
	issueTimeout = 10 * time.Second
)

// Config says where Vault is. Zero values mean the defaults.
type Config struct {
	Address   string // default: VAULT_ADDR
	Namespace string // of Vault Enterprise
	Mount     string // of the PKI engine; default "soulbox-pki"
	// Token may do what Policy says. TokenFile, where set, is read again for each call, so that Nomad or Vault's agent can
	// renew the token in it. Default: VAULT_TOKEN.
	Token     string
	TokenFile string
	CACert    string // file with the CA of Vault's own API
	Logger    hclog.Logger
}

// Client speaks to a Vault. It is safe for concurrent use.
type Client struct {
	cfg     Config
	api     *vaultapi.Client
	log     hclog.Logger
	breaker breaker
}

// Connect returns a client. It does not speak to Vault yet.
func Connect(cfg Config) (*Client, error) {
	if cfg.Mount == "" {
		cfg.Mount = DefaultMount
	}
	cfg.Mount = strings.Trim(cfg.Mount, "/")
	conf := vaultapi.DefaultConfig()
	if conf.Error != nil {
		return nil, fmt.Errorf("vault client: %w", conf.Error)
	}
	if cfg.Address != "" {
		conf.Address = cfg.Address
	}
	if cfg.CACert != "" {
		if err := conf.ConfigureTLS(&vaultapi.TLSConfig{CACert: cfg.CACert}); err != nil {
			return nil, fmt.Errorf("vault client: %w", err)
		}
	}
	conf.Timeout, conf.MaxRetries = issueTimeout, 0
	client, err := vaultapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	if cfg.Token != "" {
		client.SetToken(cfg.Token)
	}
	if cfg.Namespace != "" {
		client.SetNamespace(cfg.Namespace)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Client{cfg: cfg, api: client, log: cfg.Logger, breaker: breaker{now: time.Now}}, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.api.CloneConfig().HttpClient.CloseIdleConnections() }

// session returns the client with the token of this moment.
func (c *Client) session() (*vaultapi.Client, error) {
	if c.cfg.TokenFile == "" {
		return c.api, nil
	}
	token, err := os.ReadFile(c.cfg.TokenFile)
	if err != nil {
		return nil, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault token: %v", err)
	}
	s, err := c.api.CloneWithHeaders()
	if err != nil {
		return nil, fmt.Errorf("vault client: %w", err)
	}
	s.SetToken(strings.TrimSpace(string(token)))
	return s, nil
}

// call speaks to Vault once, for as long as limit allows. Whatever fails is an *api.Error of status 503, or the caller's context. While
// Vault does not answer, most calls fail at once.
func (c *Client) call(ctx context.Context, limit time.Duration, f func(context.Context, *vaultapi.Client) error) error {
	if err := c.breaker.allow(); err != nil {
		return err
	}
	s, err := c.session()
	if err != nil {
		c.breaker.forgive()
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = f(bounded, s)
	switch {
	case ctx.Err() != nil: // the caller has gone, which says nothing of Vault
		c.breaker.forgive()
	case silent(err):
		c.breaker.failed(err)
	default:
		c.breaker.worked()
	}
	if err == nil {
		return nil
	}
	return mapError(err)
}

// silent reports whether err means that Vault cannot serve anybody, as opposed to a refusal.
func silent(err error) bool {
	var resp *vaultapi.ResponseError
	if errors.As(err, &resp) {
		return resp.StatusCode >= http.StatusInternalServerError
	}
	return err != nil
}

// read returns the data at a path. What does not exist is an error.
func (c *Client) read(ctx context.Context, path string) (map[string]any, error) {
	var s *vaultapi.Secret
	err := c.call(ctx, callTimeout, func(ctx context.Context, v *vaultapi.Client) (err error) {
		s, err = v.Logical().ReadWithContext(ctx, path)
		return err
	})
	if err == nil && s == nil {
		err = api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault has nothing there")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s.Data, nil
}

// write writes data to a path and returns the answer's, which may be nil.
func (c *Client) write(ctx context.Context, path string, in map[string]any) (map[string]any, error) {
	var out map[string]any
	err := c.call(ctx, callTimeout, func(ctx context.Context, v *vaultapi.Client) error {
		s, err := v.Logical().WriteWithContext(ctx, path, in)
		if s != nil {
			out = s.Data
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return out, nil
}

// mapError returns an error of Vault's as an *api.Error: whatever it is, it is not the client's.
func mapError(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var resp *vaultapi.ResponseError
	if errors.As(err, &resp) {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
			"vault: %.300s (status %d)", strings.Join(resp.Errors, "; "), resp.StatusCode)
	}
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "vault cannot be reached: %v", err)
}
