package soulboxsecrets

import (
	"context"
	"time"
)

// service is what the engine needs of the control service. Its errors say which call has failed, and are an *api.Error where the
// control service has answered.
type service interface {
	// Self returns the key that the engine itself uses.
	Self(ctx context.Context) (apiKey, error)
	// CreateKey makes a key. Its secret is in the answer only.
	CreateKey(ctx context.Context, k apiKey) (apiKey, error)
	// FindKeys returns the ids of a tenant's keys of a name, which is the engine's own and of no two creations.
	FindKeys(ctx context.Context, tenant, name string) ([]string, error)
	// DeleteKey takes a key away. One that does not exist is no error.
	DeleteKey(ctx context.Context, tenant, id string) error
	Close()
}

// apiKey is an API key of the control service.
type apiKey struct {
	ID     string
	Tenant string
	Name   string
	Roles  []string
	// Everywhere says that the roles hold in all tenants and for the system.
	Everywhere bool
	Expires    time.Time // zero: never
	Secret     string    // sb_<id>_<secret>; empty where it is not known
}
