package soulboxsecrets

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/hashicorp/vault/sdk/logical"
)

// Kinds of entries in the write-ahead log.
const (
	walKey  = "api_key" // a key that may have been made for a lease that does not exist
	walRoot = "root"    // the engine's own key is being replaced
)

// walEntry names a key that is about to be made.
type walEntry struct {
	Tenant  string `json:"tenant" mapstructure:"tenant"`
	Name    string `json:"name" mapstructure:"name"`
	Expires int64  `json:"expires" mapstructure:"expires"` // when the control service itself ends it; 0: never
	Old     string `json:"old,omitempty" mapstructure:"old"`
}

// rollback takes away what an interrupted request has made in the control service. Vault calls it again until it succeeds.
func (b *backend) rollback(ctx context.Context, req *logical.Request, kind string, data any) error {
	var e walEntry
	if err := mapstructure.WeakDecode(data, &e); err != nil {
		return fmt.Errorf("write-ahead log: %w", err)
	}
	if e.Expires != 0 && b.now().After(time.Unix(e.Expires, 0)) {
		return nil // it has ended by itself
	}
	client, err := b.service(ctx, req.Storage)
	if errors.Is(err, errUnconfigured) {
		b.Logger().Warn("a key may be left in the control service: the engine is not configured any more", "name", e.Name)
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ids, err := client.FindKeys(ctx, e.Tenant, e.Name)
	if err != nil {
		return err
	}
	switch kind {
	case walKey:
	case walRoot:
		if ids, err = b.staleRoots(ctx, req.Storage, e, ids); err != nil {
			return err
		}
	default:
		return fmt.Errorf("write-ahead log: kind %.40q is unknown", kind)
	}
	for _, id := range ids {
		if err := client.DeleteKey(ctx, e.Tenant, id); err != nil {
			return err
		}
		b.Logger().Info("took back a key of an interrupted request", "id", id, "name", e.Name)
	}
	return nil
}

// staleRoots returns which keys an interrupted rotation has left: the new one, or, where that is in use already, the old one.
func (b *backend) staleRoots(ctx context.Context, s logical.Storage, e walEntry, made []string) ([]string, error) {
	cfg, err := readConfig(ctx, s)
	if err != nil || cfg == nil {
		return nil, err
	}
	used := keyID(cfg.APIKey)
	var stale []string
	inUse := false
	for _, id := range made {
		if id == used {
			inUse = true
		} else {
			stale = append(stale, id)
		}
	}
	if inUse && e.Old != "" && e.Old != used {
		stale = append(stale, e.Old)
	}
	return stale, nil
}
