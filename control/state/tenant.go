package state

import (
	"fmt"
	"regexp"
	"time"
)

// Everywhere is the scope of a role or a binding that holds in all tenants and for the system. It is no tenant's id.
const Everywhere = "*"

// Tenant owns sandboxes, templates, keys and all else. Values that leave the store share their maps.
type Tenant struct {
	ID     string            `codec:"id"`
	Name   string            `codec:"name"` // for people
	Labels map[string]string `codec:"labels"`

	Suspended   bool      `codec:"suspended"` // no new work
	SuspendedAt time.Time `codec:"suspended_at"`
	Reason      string    `codec:"reason"` // of the suspension, for people

	Defaults  TenantDefaults  `codec:"defaults"`
	Maximums  TenantDefaults  `codec:"maximums"` // of any one sandbox. Zero: the service's own
	Isolation TenantIsolation `codec:"isolation"`

	// What its sandboxes may reach, whatever they say themselves: NetworkBound is the operator's word, Network the tenant's own.
	NetworkBound NetworkPolicy `codec:"network_bound"`
	Network      NetworkPolicy `codec:"network"`

	CreatedAt   time.Time `codec:"created_at"`
	CreatedBy   string    `codec:"created_by"`
	UpdatedAt   time.Time `codec:"updated_at"`
	CreateIndex uint64    `codec:"create_index"`
	ModifyIndex uint64    `codec:"modify_index"`
}

// TenantDefaults are what a sandbox gets whose create does not say, or what it may have at most. Zero: the service's own.
type TenantDefaults struct {
	CPUMillis int64         `codec:"cpu_millis"`
	MemoryMB  int64         `codec:"memory_mb"`
	DiskMB    int64         `codec:"disk_mb"`
	Timeout   time.Duration `codec:"timeout"`
	// Of the link, in Mbit/s. A sandbox that does not say gets the default, or where there is none what is the most; neither: as
	// much as there is.
	BandwidthIn  int64 `codec:"bandwidth_in_mbit"`
	BandwidthOut int64 `codec:"bandwidth_out_mbit"`
}

// MaxBandwidth is the most Mbit/s that a link can be held to.
const MaxBandwidth = (1<<32 - 1) / Mbit

// Isolation is how far a tenant shares with others.
type Isolation string

// The levels.
const (
	Shared    Isolation = "shared"
	Dedicated Isolation = "dedicated"
)

// TenantIsolation says for each of three things how far it is shared. Empty: shared.
type TenantIsolation struct {
	Network Isolation `codec:"network"` // dedicated: no path between its sandboxes' bridges and others'
	Storage Isolation `codec:"storage"` // dedicated: copies of templates of its own, on every node
	Compute Isolation `codec:"compute"` // dedicated: nodes that run nobody else's sandboxes
}

// Limits of a tenant's record.
const (
	MaxTenantName  = 128 // bytes
	MaxLabels      = 64
	MaxLabelsBytes = 16 << 10
)

var tenantID = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckTenantID checks a tenant's id: it is in host names, paths and job files.
func CheckTenantID(id string) error {
	if !tenantID.MatchString(id) {
		return limitErrorf("tenant", "%.80q is not 1 to 63 of a-z, 0-9 and \"-\", which neither begins nor ends it", id)
	}
	return nil
}

// CheckLabels checks the labels of a tenant.
func CheckLabels(m map[string]string) error {
	return checkPairs("labels", m, MaxLabels, MaxLabelsBytes, func(k string) string {
		if k == "" {
			return "has an empty key"
		}
		return ""
	})
}

// TenantPut records a tenant: a new one (Index 0), or the change of one that is still as it was at Index.
type TenantPut struct {
	Tenant Tenant `codec:"tenant"`
	Index  uint64 `codec:"index"`
}

// TenantDelete forgets a tenant. One that owns anything is ErrConflict, unless Cascade: then its keys, roles, bindings,
// templates and ended sandboxes go with it. One that has live sandboxes is refused in any case: end them first.
type TenantDelete struct {
	ID      string `codec:"id"`
	Cascade bool   `codec:"cascade"`
}

func (*TenantPut) kind() commandType    { return typeTenantPut }
func (*TenantDelete) kind() commandType { return typeTenantDelete }

func (c *TenantPut) check() error {
	t := &c.Tenant
	if err := CheckTenantID(t.ID); err != nil {
		return err
	}
	if len(t.Name) > MaxTenantName || !clean(t.Name) {
		return limitErrorf("name", "is longer than %d bytes, or not UTF-8", MaxTenantName)
	}
	if err := CheckLabels(t.Labels); err != nil {
		return err
	}
	t.Reason = cut(t.Reason)
	d, m := t.Defaults, t.Maximums
	for _, v := range []struct {
		name   string
		n, max int64
	}{
		{"cpu_millis", d.CPUMillis, m.CPUMillis}, {"memory_mb", d.MemoryMB, m.MemoryMB}, {"disk_mb", d.DiskMB, m.DiskMB},
		{"timeout", int64(d.Timeout), int64(m.Timeout)},
		{"bandwidth_in_mbit", d.BandwidthIn, m.BandwidthIn}, {"bandwidth_out_mbit", d.BandwidthOut, m.BandwidthOut},
	} {
		switch {
		case v.n < 0:
			return limitErrorf("defaults."+v.name, "is negative")
		case v.max < 0:
			return limitErrorf("maximums."+v.name, "is negative")
		case v.max > 0 && v.n > v.max:
			return limitErrorf("defaults."+v.name, "is more than maximums.%s", v.name)
		}
	}
	for _, v := range []struct {
		name string
		n    int64
	}{
		{"defaults.bandwidth_in_mbit", d.BandwidthIn}, {"defaults.bandwidth_out_mbit", d.BandwidthOut},
		{"maximums.bandwidth_in_mbit", m.BandwidthIn}, {"maximums.bandwidth_out_mbit", m.BandwidthOut},
	} {
		if v.n > MaxBandwidth {
			return limitErrorf(v.name, "is %d Mbit/s, at most %d are allowed", v.n, int64(MaxBandwidth))
		}
	}
	if err := c.Tenant.NetworkBound.check("network_bound"); err != nil {
		return err
	}
	if err := c.Tenant.Network.check("network"); err != nil {
		return err
	}
	for _, v := range []struct {
		name  string
		level Isolation
	}{{"network", t.Isolation.Network}, {"storage", t.Isolation.Storage}, {"compute", t.Isolation.Compute}} {
		if v.level != "" && v.level != Shared && v.level != Dedicated {
			return limitErrorf("isolation."+v.name, "is %.20q, neither %q nor %q", v.level, Shared, Dedicated)
		}
	}
	return nil
}

func (c *TenantDelete) check() error {
	if c.ID == DefaultTenant {
		return limitErrorf("tenant", "%q is always there", DefaultTenant)
	}
	return CheckTenantID(c.ID)
}

func (c *TenantPut) apply(tx *writeTx) (Result, error) {
	old, err := first[Tenant](tx.txn, tableTenant, c.Tenant.ID)
	if err != nil {
		return Result{}, err
	}
	t := c.Tenant
	t.CreateIndex, t.ModifyIndex = tx.index, tx.index
	switch {
	case old == nil && c.Index == 0:
	case old == nil && t.ID == DefaultTenant && c.Index == 1: // it is there without a record until it is changed
	case old == nil:
		return Result{}, fmt.Errorf("tenant %s: %w", t.ID, ErrNotFound)
	case c.Index == 0:
		return Result{Tenant: *old}, fmt.Errorf("tenant %s: %w", t.ID, ErrExists)
	case c.Index != old.ModifyIndex:
		return Result{Tenant: *old}, fmt.Errorf("tenant %s was changed at the same time: %w", t.ID, ErrConflict)
	default:
		t.CreateIndex, t.CreatedAt, t.CreatedBy = old.CreateIndex, old.CreatedAt, old.CreatedBy
	}
	if old == nil && t.ID == DefaultTenant && c.Index == 0 {
		return Result{}, fmt.Errorf("tenant %s: %w", t.ID, ErrExists)
	}
	if err := tx.txn.Insert(tableTenant, &t); err != nil {
		return Result{}, fmt.Errorf("write tenant %s: %w", t.ID, err)
	}
	tx.policy = true
	return Result{Tenant: t, Changed: 1}, nil
}

func (c *TenantDelete) apply(tx *writeTx) (Result, error) {
	t, err := first[Tenant](tx.txn, tableTenant, c.ID)
	if err != nil {
		return Result{}, err
	}
	if t == nil {
		return Result{}, fmt.Errorf("tenant %s: %w", c.ID, ErrNotFound)
	}
	owned, live, err := tx.owned(c.ID)
	if err != nil {
		return Result{}, err
	}
	if live > 0 {
		return Result{}, fmt.Errorf("tenant %s has %d sandboxes that have not ended: %w", c.ID, live, ErrConflict)
	}
	n := 0
	for _, o := range owned {
		if !c.Cascade && o.table != tableQuota { // which says only what it may own
			return Result{}, fmt.Errorf("tenant %s still owns things, such as a %s: %w", c.ID, o.table, ErrConflict)
		}
		if err := tx.txn.Delete(o.table, o.row); err != nil {
			return Result{}, fmt.Errorf("delete %s of tenant %s: %w", o.table, c.ID, err)
		}
		n++
	}
	if err := tx.txn.Delete(tableTenant, t); err != nil {
		return Result{}, fmt.Errorf("delete tenant %s: %w", c.ID, err)
	}
	tx.policy = true
	return Result{Tenant: *t, Changed: n + 1}, nil
}

// owners says of the tables whose rows are tenants' how to find out whose.
var owners = map[string]func(row any) string{
	tableSandbox:  ownerOf(func(s *Sandbox) string { return s.Tenant }),
	tableKey:      ownerOf(func(k *Key) string { return k.Tenant }),
	tableTemplate: ownerOf(func(t *Template) string { return t.Tenant }),
	tableSnapshot: ownerOf(func(s *Snapshot) string { return s.Tenant }),
	tableRole:     ownerOf(func(r *Role) string { return r.Tenant }),
	tableBinding:  ownerOf(func(b *Binding) string { return b.Tenant }),
	tableQuota:    ownerOf(func(q *Quota) string { return q.Tenant }),
	tablePool:     ownerOf(func(p *Pool) string { return p.Tenant }),
	tableSlot:     ownerOf(func(s *Slot) string { return s.Tenant }),
	tableSecret:   ownerOf(func(s *Secret) string { return s.Tenant }),
}

func ownerOf[T any](tenant func(*T) string) func(any) string {
	return func(row any) string {
		if v, ok := row.(*T); ok {
			return tenant(v)
		}
		return ""
	}
}

type ownedRow struct {
	table string
	row   any
}

// owned returns the rows of a tenant, in the order of the tables and their ids, and how many live sandboxes are among them.
func (t *writeTx) owned(tenant string) (rows []ownedRow, live int, err error) {
	for _, table := range snapshotTables {
		owner := owners[table.table]
		if owner == nil {
			continue
		}
		it, err := t.txn.Get(table.table, indexID)
		if err != nil {
			return nil, 0, fmt.Errorf("list %s: %w", table.table, err)
		}
		for row := it.Next(); row != nil; row = it.Next() {
			if owner(row) != tenant {
				continue
			}
			if s, ok := row.(*Sandbox); ok && !s.State.Ended() {
				live++
			}
			rows = append(rows, ownedRow{table.table, row})
		}
	}
	return rows, live, nil
}

// tenant returns nil where a tenant takes new work.
func (t *writeTx) tenant(id string) error {
	row, err := first[Tenant](t.txn, tableTenant, id)
	switch {
	case err != nil:
		return err
	case row == nil && id != DefaultTenant:
		return fmt.Errorf("tenant %.80q: %w", id, ErrNotFound)
	case row != nil && row.Suspended:
		return fmt.Errorf("tenant %s: %w", id, ErrSuspended)
	}
	return nil
}

// defaultTenant is the tenant that is there without a record.
func defaultTenant() Tenant {
	return Tenant{ID: DefaultTenant, Name: DefaultTenant, CreateIndex: 1, ModifyIndex: 1}
}

// Tenant returns a tenant by its id.
func (s *Store) Tenant(id string) (Tenant, error) {
	row, err := first[Tenant](s.read(), tableTenant, id)
	if err != nil {
		return Tenant{}, err
	}
	if row == nil {
		if id == DefaultTenant {
			return defaultTenant(), nil
		}
		return Tenant{}, fmt.Errorf("tenant %.80q: %w", id, ErrNotFound)
	}
	return *row, nil
}

// Tenants returns all tenants, by id.
func (s *Store) Tenants() ([]Tenant, error) {
	it, err := s.read().Get(tableTenant, indexID)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	out, there := collect[Tenant](it, nil), false
	for _, t := range out {
		there = there || t.ID == DefaultTenant
	}
	if !there {
		out = append([]Tenant{defaultTenant()}, out...)
	}
	return out, nil
}
