package pool

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
)

// nameForm is the form of a pool's name.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

// Defaults of a pool.
const (
	defaultMin    = 1
	defaultRate   = 50
	defaultMaxAge = time.Hour
	defaultLook   = 30 * time.Second
)

// List returns the pools of a tenant, by name; of all tenants where it is empty.
func (s *Service) List(tenant string) ([]api.Pool, error) {
	all, err := s.cfg.State.Pools()
	if err != nil {
		return nil, err
	}
	out := []api.Pool{}
	for i := range all {
		if tenant != "" && all[i].Tenant != tenant {
			continue
		}
		v, err := s.view(&all[i])
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b api.Pool) int {
		return strings.Compare(a.Tenant+"/"+a.Name, b.Tenant+"/"+b.Name)
	})
	return out, nil
}

// Get returns a pool of a tenant.
func (s *Service) Get(tenant, name string) (api.Pool, error) {
	p, err := s.named(tenant, name)
	if err != nil {
		return api.Pool{}, err
	}
	return s.view(&p)
}

func (s *Service) named(tenant, name string) (state.Pool, error) {
	p, err := s.cfg.State.PoolNamed(tenant, name)
	if errors.Is(err, state.ErrNotFound) {
		return p, api.Errorf(http.StatusNotFound, api.CodeNotFound, "pool %.80q does not exist", name)
	}
	return p, err
}

// Create makes a pool. Its slots come in the background.
func (s *Service) Create(ctx context.Context, tenant, by string, n api.NewPool) (api.Pool, error) {
	if !nameForm.MatchString(n.Name) {
		return api.Pool{}, invalid("name: %.80q is not 1 to 63 of a-z, 0-9, \"_\", \".\" and \"-\", with a letter or digit first", n.Name)
	}
	if n.Template == nil || *n.Template == "" {
		return api.Pool{}, invalid("template is missing")
	}
	now := s.cfg.Now().UTC()
	p := state.Pool{
		ID: api.NewPoolID(), Tenant: tenant, Name: n.Name, Strategy: state.StrategyFixed, Min: defaultMin, Max: defaultMin, Rate: defaultRate,
		MaxAge: defaultMaxAge, Interval: defaultLook, CreatedAt: now, UpdatedAt: now, CreatedBy: by,
	}
	if n.Max == nil && n.Min != nil {
		p.Max = *n.Min
	}
	return s.put(ctx, p, n.PoolSpec)
}

// Change changes what is given of a pool.
func (s *Service) Change(ctx context.Context, tenant, name string, c api.PoolSpec) (api.Pool, error) {
	p, err := s.named(tenant, name)
	if err != nil {
		return api.Pool{}, err
	}
	p.UpdatedAt = s.cfg.Now().UTC()
	if c.Min != nil && c.Max == nil && (p.Strategy == state.StrategyFixed || *c.Min > p.Max) {
		p.Max = *c.Min
	}
	return s.put(ctx, p, c)
}

// put records a pool with what a spec says of it.
func (s *Service) put(ctx context.Context, p state.Pool, c api.PoolSpec) (api.Pool, error) {
	apply(&p.Template, c.Template)
	apply(&p.Shared, c.Shared)
	apply(&p.CPUMillis, c.CPUMillis)
	apply(&p.MemoryMB, c.MemoryMB)
	apply(&p.DiskMB, c.DiskMB)
	apply(&p.QoS, c.QoS)
	apply(&p.Profile, c.Profile)
	if c.Placement != nil {
		where, err := placement.ParseRules(c.Placement)
		if err != nil {
			return api.Pool{}, err
		}
		p.Where = string(where)
	}
	if c.Strategy != nil {
		p.Strategy = state.Strategy(*c.Strategy)
	}
	apply(&p.Min, c.Min)
	apply(&p.Max, c.Max)
	apply(&p.Threshold, c.RefillThreshold)
	apply(&p.Rate, c.Rate)
	apply(&p.WarmUp, c.WarmUp)
	for _, d := range []struct {
		name string
		to   *time.Duration
		from *int64
	}{{"max_age_seconds", &p.MaxAge, c.MaxAge}, {"cleanup_interval_seconds", &p.Interval, c.CleanupInterval}} {
		if d.from == nil {
			continue
		}
		if *d.from < 1 || *d.from > int64(30*24*time.Hour/time.Second) {
			return api.Pool{}, invalid("%s: %d is not between 1 and 2592000", d.name, *d.from)
		}
		*d.to = time.Duration(*d.from) * time.Second
	}
	switch p.QoS {
	case "", "guaranteed", "burstable", "best_effort":
	default:
		return api.Pool{}, invalid("qos: %.40q is none of guaranteed, burstable and best_effort", p.QoS)
	}
	switch p.Profile {
	case "", "default", "strict":
	default:
		return api.Pool{}, invalid("profile: %.40q is neither default nor strict", p.Profile)
	}
	t, err := s.cfg.Templates.Resolve(ctx, p.Tenant, p.Template)
	if err != nil {
		return api.Pool{}, err
	}
	if err := s.cfg.Size(t, &p.CPUMillis, &p.MemoryMB, &p.DiskMB); err != nil {
		return api.Pool{}, err
	}
	r, err := s.cfg.State.Apply(ctx, &state.PoolPut{Pool: p})
	if errors.Is(err, state.ErrExists) {
		return api.Pool{}, api.Errorf(http.StatusConflict, api.CodeConflict, "pool %s exists already", p.Name)
	}
	if err != nil {
		return api.Pool{}, err
	}
	s.mu.Lock()
	if k := s.kept[p.ID]; k != nil {
		k.failures, k.retryAt, k.filling = 0, time.Time{}, true // what stood in the way may be what was changed
	}
	s.mu.Unlock()
	s.Wake()
	return s.view(&r.Pool)
}

func apply[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// Delete forgets a pool and ends its slots.
func (s *Service) Delete(ctx context.Context, tenant, name string) error {
	p, err := s.named(tenant, name)
	if err != nil {
		return err
	}
	slots, err := s.cfg.State.Slots(p.ID)
	if err != nil {
		return err
	}
	if _, err := s.cfg.State.Apply(ctx, &state.PoolDelete{ID: p.ID}); err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	for _, slot := range slots {
		if err := s.end(ctx, slot.ID); err != nil {
			s.log.Debug("slot not ended yet", "slot", slot.ID, "error", err) // the reconciler does it
		}
	}
	return nil
}

// view shows a pool as it is now.
func (s *Service) view(p *state.Pool) (api.Pool, error) {
	v := api.Pool{
		ID: p.ID, Name: p.Name, Tenant: p.Tenant, Shared: p.Shared, Template: p.Template, CPUMillis: p.CPUMillis, MemoryMB: p.MemoryMB, DiskMB: p.DiskMB,
		QoS: cmp.Or(p.QoS, defaultQoS), Profile: cmp.Or(p.Profile, defaultProfile), Strategy: string(p.Strategy), Min: p.Min, Max: p.Max, RefillThreshold: p.Threshold, Rate: p.Rate,
		MaxAge: int64(p.MaxAge / time.Second), CleanupInterval: int64(p.Interval / time.Second), WarmUp: p.WarmUp,
		CreatedAt: p.CreatedAt.UTC(), UpdatedAt: p.UpdatedAt.UTC(),
	}
	if p.Where != "" {
		where := placement.Rules(p.Where).Placement()
		v.Placement = &where
	}
	if v.WarmUp == nil {
		v.WarmUp = []string{}
	}
	st := &v.Status
	err := s.cfg.State.EachSlot(p.ID, func(row *state.Slot) bool {
		if row.State != state.SlotReady {
			st.Making++
			return true
		}
		st.Ready++
		if at := row.ReadyAt.UTC(); st.Oldest == nil || at.Before(*st.Oldest) {
			st.Oldest = &at
		}
		return true
	})
	if err != nil {
		return v, err
	}
	now := s.cfg.Now()
	st.Forecast = forecast(p.Demand, now)
	st.Demand, _ = p.Demand.At(state.WindowOf(now))
	st.Hits, st.Misses, st.Target = p.Hits, p.Misses, bound(p, p.Target)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.counts[p.ID]; c != nil {
		st.Hits, st.Misses, st.Demand = st.Hits+c.hits, st.Misses+c.misses, st.Demand+uint32(c.hits+c.misses)
	}
	if k := s.kept[p.ID]; k != nil {
		st.Target, st.Limited = k.wanted, k.wanted < k.target
		st.Refill, st.Made, st.Dropped, st.Problem = k.refill.Seconds(), k.made, k.dropped, k.problem
	}
	return v, nil
}

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}
