package lifecycle

import (
	"errors"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// tenantOf returns the record of a tenant. One without a record has no rules of its own; the tables refuse its sandboxes.
func (s *Service) tenantOf(id string) (state.Tenant, error) {
	t, err := s.cfg.State.Tenant(id)
	if errors.Is(err, state.ErrNotFound) {
		return state.Tenant{ID: id}, nil
	}
	return t, err
}

// fill gives a create what its tenant's record says of sandboxes that do not say it.
func fill(p *CreateParams, d state.TenantDefaults) {
	orDefault(&p.Timeout, d.Timeout)
	orDefault(&p.CPUMillis, d.CPUMillis)
	orDefault(&p.MemoryMB, d.MemoryMB)
	if p.Limits.DiskBytes == 0 {
		orDefault(&p.DiskMB, d.DiskMB)
	}
}

// bound refuses a sandbox that is larger than its tenant's may be, wherever its size comes from.
func bound(t state.Tenant, cpuMillis, memoryMB, diskMB int64) error {
	for _, v := range []struct {
		name     string
		got, max int64
	}{
		{"cpuMillis", cpuMillis, t.Maximums.CPUMillis}, {"memoryMB", memoryMB, t.Maximums.MemoryMB}, {"diskMB", diskMB, t.Maximums.DiskMB},
	} {
		if v.max > 0 && v.got > v.max {
			return invalid("%s is %d, sandboxes of tenant %s may have at most %d", v.name, v.got, t.ID, v.max)
		}
	}
	return nil
}

// boundTimeout refuses a time from now to a deadline that is longer than a tenant's sandboxes may be given.
func (s *Service) boundTimeout(tenant string, d time.Duration) error {
	if err := s.checkTimeout(d); err != nil {
		return err
	}
	t, err := s.tenantOf(tenant)
	if err == nil && t.Maximums.Timeout > 0 && d > t.Maximums.Timeout {
		err = invalid("timeout is %d seconds, sandboxes of tenant %s may have at most %d", int64(d/time.Second), tenant, int64(t.Maximums.Timeout/time.Second))
	}
	return err
}

// ownTemplates returns the tenant whose own copies of templates a sandbox is to be made of; empty: those that all share.
func ownTemplates(t state.Tenant) string {
	if t.Isolation.Storage == state.Dedicated {
		return t.ID
	}
	return ""
}
