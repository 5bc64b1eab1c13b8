package quota

import (
	"context"
	"maps"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// State is what the service needs of the tables.
type State interface {
	Quota(tenant string) (state.Quota, error)
	QuotaLimits(tenant string) ([state.NumLimits]int64, error)
	Usage(tenant string) (state.Use, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Service reads and changes quotas, and counts calls.
type Service struct {
	*Ledger
	State State
	Now   func() time.Time // nil: time.Now
}

// Get returns a tenant's own limits, and what counts for it.
func (s *Service) Get(tenant string) (state.Quota, [state.NumLimits]int64, error) {
	q, err := s.State.Quota(tenant)
	if err != nil {
		return q, [state.NumLimits]int64{}, err
	}
	limits, err := s.State.QuotaLimits(tenant)
	return q, limits, err
}

// Set replaces a tenant's own limits, or, of state.Everywhere, the default. by is who does it.
func (s *Service) Set(ctx context.Context, tenant string, limits map[string]int64, by string) error {
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	_, err := s.State.Apply(ctx, &state.QuotaPut{Quota: state.Quota{Tenant: tenant, Limits: limits, UpdatedAt: now().UTC(), UpdatedBy: by}})
	return err
}

// Usage returns what a tenant uses.
func (s *Service) Usage(tenant string) (state.Use, error) { return s.State.Usage(tenant) }

// byConfig is who has set a default that a configuration file says.
const byConfig = "config"

// SetDefault makes limits, as a configuration file says them, the default, unless somebody else has set it since.
func (s *Service) SetDefault(ctx context.Context, limits map[string]int64) error {
	if limits == nil {
		return nil
	}
	q, err := s.State.Quota(state.Everywhere)
	if err != nil || q.CreateIndex != 0 && (q.UpdatedBy != byConfig || maps.Equal(q.Limits, limits)) {
		return err
	}
	return s.Set(ctx, state.Everywhere, limits, byConfig)
}
