package vault

import (
	"context"
	"fmt"
	"strings"
)

// Engine says how SoulBox's secrets engine reaches the control service.
type Engine struct {
	Mount   string // such as "soulbox"
	Address string // URL of the control service
	APIKey  string // that may make and delete keys
	CA      string // PEM, of the control service's certificate; optional
}

// ConfigureEngine tells a mounted engine where the control service is. The engine speaks to it with a key of its own, which nobody else
// should have.
func (c *Client) ConfigureEngine(ctx context.Context, e Engine) error {
	mount := strings.Trim(e.Mount, "/")
	if _, err := c.write(ctx, mount+"/config", map[string]any{"address": e.Address, "api_key": e.APIKey, "ca": e.CA}); err != nil {
		return fmt.Errorf("configure vault's engine: %w", err)
	}
	return nil
}

// Role is a role of the engine.
type Role struct {
	Name, Tenant string
	Roles        []string // of SoulBox
	TTL, MaxTTL  string   // durations
}

// PutRole makes a role of the engine at mount, or changes it.
func (c *Client) PutRole(ctx context.Context, mount string, r Role) error {
	_, err := c.write(ctx, strings.Trim(mount, "/")+"/roles/"+r.Name, map[string]any{
		"tenant": r.Tenant, "roles": r.Roles, "ttl": r.TTL, "max_ttl": r.MaxTTL,
	})
	if err != nil {
		return fmt.Errorf("role %s of vault's engine: %w", r.Name, err)
	}
	return nil
}
