package soulboxsecrets

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/url"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	configKey = "config"

	defaultIssuer   = "vault-plugin-secrets-soulbox"
	defaultAudience = "soulbox"
	defaultRotation = 24 * time.Hour
	minRotation     = time.Hour
	maxRotation     = 365 * 24 * time.Hour
	maxText         = 256 // bytes of a name in a token
)

// config says where the control service is and what the engine's tokens say.
type config struct {
	Address  string        `json:"address"`
	APIKey   string        `json:"api_key"`
	CA       string        `json:"ca,omitempty"` // PEM
	Issuer   string        `json:"issuer"`
	Audience string        `json:"audience"`
	Rotation time.Duration `json:"token_key_rotation_period"`
}

func readConfig(ctx context.Context, s logical.Storage) (*config, error) {
	var c config
	found, err := readEntry(ctx, s, configKey, &c)
	if err != nil || !found {
		return nil, err
	}
	return &c, nil
}

// readEntry decodes what is stored at key into v, and reports whether there is something.
func readEntry(ctx context.Context, s logical.Storage, key string, v any) (bool, error) {
	e, err := s.Get(ctx, key)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	if e == nil {
		return false, nil
	}
	if err := e.DecodeJSON(v); err != nil {
		return false, fmt.Errorf("decode %s: %w", key, err)
	}
	return true, nil
}

func writeEntry(ctx context.Context, s logical.Storage, key string, v any) error {
	e, err := logical.StorageEntryJSON(key, v)
	if err == nil {
		err = s.Put(ctx, e)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	return nil
}

func (b *backend) configPaths() []*framework.Path {
	return []*framework.Path{
		{
			Pattern:      "config/rotate-root",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: forwarded(b.rotateRoot, "Replace the engine's own API key.", "rotate", "root-credentials"),
			},
			HelpSynopsis: "Replace the engine's own API key by a new one that only the engine knows.",
			HelpDescription: "Makes a key with the name, the tenant and the roles of the present one, stores it, and takes the present one away. " +
				"After that nobody but the engine has its key. The new key does not expire.",
		},
		{
			Pattern:      "config",
			DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: operationPrefix},
			Fields: map[string]*framework.FieldSchema{
				"address": {Type: framework.TypeString, Required: true, Description: "URL of the control service, such as https://soulbox.example.com:7300."},
				"api_key": {Type: framework.TypeString, Required: true, Description: "API key of the control service that may make and delete keys in the roles' tenants. It is never shown.",
					DisplayAttrs: &framework.DisplayAttributes{Sensitive: true}},
				"ca":       {Type: framework.TypeString, Description: "Certificates, in PEM, that the control service's certificate comes from. Default: those of the machine."},
				"issuer":   {Type: framework.TypeString, Default: defaultIssuer, Description: "The claim iss of tokens."},
				"audience": {Type: framework.TypeString, Default: defaultAudience, Description: "The claim aud of tokens."},
				"token_key_rotation_period": {Type: framework.TypeDurationSecond, Default: int(seconds(defaultRotation)),
					Description: "After what time a new key signs tokens, 1h to 8760h."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation:   operation(b.readConfig, "Show the configuration without its key.", "read", "configuration"),
				logical.CreateOperation: forwarded(b.writeConfig, "Configure the engine.", "configure", ""),
				logical.UpdateOperation: forwarded(b.writeConfig, "Change the configuration.", "configure", ""),
				logical.DeleteOperation: forwarded(b.deleteConfig, "Forget the configuration.", "delete", "configuration"),
			},
			ExistenceCheck:  b.configExists,
			HelpSynopsis:    "Where the control service is, and the API key that the engine uses.",
			HelpDescription: "The key should be one that nobody else uses: config/rotate-root makes sure. What is not given stays as it is.",
		},
	}
}

func (b *backend) configExists(ctx context.Context, req *logical.Request, _ *framework.FieldData) (bool, error) {
	c, err := readConfig(ctx, req.Storage)
	return c != nil, err
}

func (b *backend) readConfig(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	c, err := readConfig(ctx, req.Storage)
	if err != nil || c == nil {
		return nil, err
	}
	return &logical.Response{Data: map[string]any{
		"address": c.Address, "api_key_id": keyID(c.APIKey), "ca": c.CA, "issuer": c.Issuer, "audience": c.Audience,
		"token_key_rotation_period": seconds(c.Rotation),
	}}, nil
}

func (b *backend) writeConfig(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	c, err := readConfig(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	if c == nil {
		c = &config{Issuer: defaultIssuer, Audience: defaultAudience, Rotation: defaultRotation}
	}
	for name, to := range map[string]*string{"address": &c.Address, "api_key": &c.APIKey, "ca": &c.CA, "issuer": &c.Issuer, "audience": &c.Audience} {
		if v, ok := d.GetOk(name); ok {
			*to, _ = v.(string)
		}
	}
	if v, ok := d.GetOk("token_key_rotation_period"); ok {
		n, _ := v.(int)
		c.Rotation = time.Duration(n) * time.Second
	}
	if err := c.check(); err != nil {
		return logical.ErrorResponse(err.Error()), nil
	}
	probe, err := b.dial(c) // it says what is wrong with the values, and connects to nobody
	if err != nil {
		return logical.ErrorResponse("client of the control service: %v", err), nil
	}
	probe.Close()
	if err := writeEntry(ctx, req.Storage, configKey, c); err != nil {
		return nil, err
	}
	b.reset()
	return nil, nil
}

func (c *config) check() error {
	u, err := url.Parse(c.Address)
	switch {
	case c.Address == "":
		return fmt.Errorf("address is missing")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("address: want http://host:port or https://host:port")
	case c.APIKey == "":
		return fmt.Errorf("api_key is missing")
	case keyID(c.APIKey) == "":
		return fmt.Errorf("api_key is no API key of SoulBox: want sb_<id>_<secret> or e2b_<hex>")
	case c.Rotation < minRotation || c.Rotation > maxRotation:
		return fmt.Errorf("token_key_rotation_period is %s, %s to %s are allowed", c.Rotation, minRotation, maxRotation)
	}
	if c.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.CA)) {
		return fmt.Errorf("ca holds no certificate in PEM")
	}
	for name, v := range map[string]string{"issuer": c.Issuer, "audience": c.Audience} {
		if v == "" || len(v) > maxText {
			return fmt.Errorf("%s has %d bytes, 1 to %d are allowed", name, len(v), maxText)
		}
	}
	return nil
}

func (b *backend) deleteConfig(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
	b.write.Lock()
	defer b.write.Unlock()
	if err := req.Storage.Delete(ctx, configKey); err != nil {
		return nil, fmt.Errorf("delete %s: %w", configKey, err)
	}
	b.reset()
	return nil, nil
}
