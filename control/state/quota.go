package state

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Limit is something that a tenant has only so much of.
type Limit int

// The limits. Those before NumCounted are counted in the tables, those behind it are rates.
const (
	LimitSandboxes  Limit = iota // that have not ended, paused ones too
	LimitConcurrent              // that have not ended and are not paused
	LimitCPU                     // thousandths of a core, of those
	LimitMemory                  // MiB, of those
	LimitStorage                 // MiB: disks of sandboxes that have not ended, and stored snapshots
	LimitTemplates
	LimitSnapshots
	LimitBandwidthIn  // Mbit/s, that sandboxes which are not paused may receive; each in whole ones
	LimitBandwidthOut // Mbit/s, that they may send
	LimitSecrets
	NumCounted

	LimitCalls   Limit = NumCounted // API calls a second
	LimitCreates Limit = LimitCalls + 1
	NumLimits    Limit = LimitCreates + 1
)

// limitNames are the words of the API and of records.
var limitNames = [NumLimits]string{
	"sandboxes", "concurrent_sandboxes", "cpu_millis", "memory_mb", "storage_mb", "templates", "snapshots",
	"bandwidth_in_mbit", "bandwidth_out_mbit", "secrets", "api_calls_per_second", "creates_per_second",
}

func (l Limit) String() string { return limitNames[l] }

// LimitNames are the names of all limits, in the order of documents.
func LimitNames() []string { return slices.Clone(limitNames[:]) }

// LimitOf returns the limit of a name.
func LimitOf(name string) (Limit, bool) {
	i := slices.Index(limitNames[:], name)
	return Limit(i), i >= 0
}

// Unlimited as a limit's value means that there is none.
const Unlimited = -1

// MaxLimit bounds the values of limits, so that sums of them never overflow.
const MaxLimit = 1 << 50

// Use is how much of each counted limit a tenant uses, or asks for. An ask of Unlimited is one for all that there is: of a sandbox whose link
// has no rate.
type Use [NumCounted]int64

// Mbit is a million bits a second, in bytes.
const Mbit = 1_000_000 / 8

// mbits returns the whole Mbit/s that bytes a second need.
func mbits(rate int64) int64 { return (max(0, rate) + Mbit - 1) / Mbit }

// Quota is what a tenant may use, by the limits' names; Everywhere's is the default. A limit that is not there is the default's, and
// none where that has none either.
type Quota struct {
	Tenant      string           `codec:"tenant"`
	Limits      map[string]int64 `codec:"limits"`
	UpdatedAt   time.Time        `codec:"updated_at"`
	UpdatedBy   string           `codec:"updated_by"`
	CreateIndex uint64           `codec:"create_index"`
	ModifyIndex uint64           `codec:"modify_index"`
}

// QuotaPut records the quota of a tenant, or the default one, in place of what it was.
type QuotaPut struct {
	Quota Quota `codec:"quota"`
}

func (*QuotaPut) kind() commandType { return typeQuotaPut }

func (c *QuotaPut) check() error {
	if c.Quota.Tenant != Everywhere {
		if err := CheckTenantID(c.Quota.Tenant); err != nil {
			return err
		}
	}
	for name, v := range c.Quota.Limits {
		if _, ok := LimitOf(name); !ok {
			return limitErrorf("limits", "has %.40q, there are %s", name, strings.Join(limitNames[:], ", "))
		}
		if v < Unlimited || v > MaxLimit {
			return limitErrorf("limits."+name, "is %d, %d (none) to %d are allowed", v, Unlimited, int64(MaxLimit))
		}
	}
	return nil
}

func (c *QuotaPut) apply(tx *writeTx) (Result, error) {
	q := c.Quota
	if q.Tenant != Everywhere && q.Tenant != DefaultTenant {
		t, err := first[Tenant](tx.txn, tableTenant, q.Tenant)
		if err != nil {
			return Result{}, err
		}
		if t == nil {
			return Result{}, fmt.Errorf("tenant %s: %w", q.Tenant, ErrNotFound)
		}
	}
	old, err := first[Quota](tx.txn, tableQuota, q.Tenant)
	if err != nil {
		return Result{}, err
	}
	q.CreateIndex, q.ModifyIndex = tx.index, tx.index
	if old != nil {
		q.CreateIndex = old.CreateIndex
	}
	if err := tx.txn.Insert(tableQuota, &q); err != nil {
		return Result{}, fmt.Errorf("write quota of tenant %s: %w", q.Tenant, err)
	}
	return Result{Quota: q, Changed: 1}, nil
}

// QuotaError says which limit a change would have broken. It has an *api.Error with status 429 in its chain.
type QuotaError struct {
	Tenant string
	Limit  Limit
	Max    int64
	Used   int64 // before
	Asked  int64 // by the change; Unlimited: all that there is
}

func (e *QuotaError) Error() string {
	if e.Asked == Unlimited {
		return fmt.Sprintf("quota of tenant %s: %s: %d of %d are in use, and a sandbox without a rate asks for all: give it one, or the tenant a default",
			e.Tenant, e.Limit, e.Used, e.Max)
	}
	return fmt.Sprintf("quota of tenant %s: %s: %d of %d are in use, %d more are asked for", e.Tenant, e.Limit, e.Used, e.Max, e.Asked)
}

// Unwrap is how the API answers.
func (e *QuotaError) Unwrap() error {
	return api.Errorf(http.StatusTooManyRequests, api.CodeQuota, "%s", e.Error())
}

// Fits returns a *QuotaError where a tenant that uses so much may not use ask more.
func Fits(tenant string, limits *[NumLimits]int64, used, ask *Use) error {
	for l := range NumCounted {
		limit, n := limits[l], ask[l]
		if n != 0 && limit != Unlimited && (n == Unlimited || used[l]+n > limit) {
			return &QuotaError{Tenant: tenant, Limit: l, Max: limit, Used: used[l], Asked: n}
		}
	}
	return nil
}

// UseOf returns what a sandbox counts for, with what a change under way holds for it. One that has ended counts for nothing.
func UseOf(s *Sandbox) (u Use) {
	if s.State.Ended() {
		return u
	}
	h := &s.Hold
	u[LimitSandboxes], u[LimitStorage] = 1, max(s.DiskMB, h.DiskMB)
	if s.active() {
		u[LimitConcurrent], u[LimitCPU], u[LimitMemory] = 1, max(s.CPUMillis, h.CPUMillis), max(s.MemoryMB, h.MemoryMB)
		u[LimitBandwidthIn], u[LimitBandwidthOut] = mbits(max(s.RateIn, h.RateIn)), mbits(max(s.RateOut, h.RateOut))
	}
	return u
}

// Ask returns what a tenant is to use in addition where one of its sandboxes becomes another than it was; before is nil for a new one.
func Ask(before, after *Sandbox) (ask Use) {
	ask = UseOf(after)
	if before == nil {
		before = &Sandbox{State: Stopped}
	}
	for i, n := range UseOf(before) {
		ask[i] = max(0, ask[i]-n)
	}
	inBefore, outBefore := before.unbounded()
	in, out := after.unbounded()
	if in && !inBefore {
		ask[LimitBandwidthIn] = Unlimited
	}
	if out && !outBefore {
		ask[LimitBandwidthOut] = Unlimited
	}
	return ask
}

func useOfSnapshot(s *Snapshot) (u Use) {
	u[LimitSnapshots] = 1
	u[LimitStorage] = (s.Stored + 1<<20 - 1) >> 20
	return u
}

// counted says what a row counts for, and for whom. Rows of other tables are nobody's.
func counted(row any) (tenant string, u Use) {
	switch r := row.(type) {
	case *Sandbox:
		return r.Tenant, UseOf(r)
	case *Snapshot:
		return r.Tenant, useOfSnapshot(r)
	case *Template:
		u[LimitTemplates] = 1
		return r.Tenant, u
	case *Secret:
		return r.Tenant, useOfSecret()
	}
	return "", u
}

// usageRow is what a tenant uses. It follows from the other tables, and is in no snapshot.
type usageRow struct {
	Tenant string
	Use    Use
}

// count brings the usage rows up to date with what tx has changed. admitted is the one sandbox whose use was asked for, where there is one.
func (t *writeTx) count() (admitted api.SandboxID, err error) {
	deltas := map[string]Use{}
	add := func(row any, sign int64) {
		tenant, u := counted(row)
		if tenant == "" {
			return
		}
		sum := deltas[tenant]
		for i := range u {
			sum[i] += sign * u[i]
		}
		deltas[tenant] = sum
	}
	for _, c := range t.txn.Changes() {
		if c.Before != nil {
			add(c.Before, -1)
		}
		if c.After != nil {
			add(c.After, 1)
		}
		if s, ok := c.After.(*Sandbox); ok {
			if old, ok := c.Before.(*Sandbox); !ok || old.Hold.Index < s.Hold.Index {
				admitted = s.ID
			}
		}
		if q, ok := c.After.(*Quota); ok {
			t.quotas = append(t.quotas, *q)
		} else if q, ok := c.Before.(*Quota); ok && c.After == nil {
			t.quotas = append(t.quotas, Quota{Tenant: q.Tenant})
		}
	}
	for tenant, delta := range deltas {
		if delta == (Use{}) && admitted == "" {
			continue
		}
		row, err := usage(t.txn, tenant)
		if err != nil {
			return "", err
		}
		for i := range delta {
			row.Use[i] += delta[i]
		}
		if err := t.txn.Insert(tableUsage, &row); err != nil {
			return "", fmt.Errorf("write usage of tenant %s: %w", tenant, err)
		}
		t.uses = append(t.uses, row)
	}
	return admitted, nil
}

func usage(txn *memdb.Txn, tenant string) (usageRow, error) {
	row, err := first[usageRow](txn, tableUsage, tenant)
	if err != nil || row == nil {
		return usageRow{Tenant: tenant}, err
	}
	return *row, nil
}

// admit returns a *QuotaError where a tenant may not use ask more than it does. It is the last word: whatever was asked before, in
// whatever order, changes come here one by one.
func (t *writeTx) admit(tenant string, ask Use) error {
	row, err := usage(t.txn, tenant)
	if err != nil {
		return err
	}
	own, err := first[Quota](t.txn, tableQuota, tenant)
	if err != nil {
		return err
	}
	def, err := first[Quota](t.txn, tableQuota, Everywhere)
	if err != nil {
		return err
	}
	var limits [NumLimits]int64
	for l := range NumLimits {
		limits[l] = limitIn(l, own, def)
	}
	return Fits(tenant, &limits, &row.Use, &ask)
}

func limitIn(l Limit, quotas ...*Quota) int64 {
	for _, q := range quotas {
		if q == nil {
			continue
		}
		if v, ok := q.Limits[limitNames[l]]; ok {
			return v
		}
	}
	return Unlimited
}

// Counter is told by the tables what tenants may use and do use, as each change is applied, by one goroutine at a time and before
// whoever made the change is answered. Of what a snapshot brings it is told after Reset.
type Counter interface {
	Reset()
	SetQuota(tenant string, limits map[string]int64)
	// SetUse says what a tenant uses now. admitted is the sandbox whose creation, or whose hold, is in it, or empty.
	SetUse(tenant string, use Use, admitted api.SandboxID)
}

// recount makes the usage rows of restored tables.
func recount(txn *memdb.Txn) error {
	uses := map[string]*usageRow{}
	for _, table := range []string{tableSandbox, tableSnapshot, tableTemplate, tableSecret} {
		it, err := txn.Get(table, indexID)
		if err != nil {
			return fmt.Errorf("count table %s: %w", table, err)
		}
		for row := it.Next(); row != nil; row = it.Next() {
			tenant, u := counted(row)
			if uses[tenant] == nil {
				uses[tenant] = &usageRow{Tenant: tenant}
			}
			for i := range u {
				uses[tenant].Use[i] += u[i]
			}
		}
	}
	for _, row := range uses {
		if row.Tenant == "" {
			continue
		}
		if err := txn.Insert(tableUsage, row); err != nil {
			return fmt.Errorf("write usage of tenant %s: %w", row.Tenant, err)
		}
	}
	return nil
}

// tellAll tells the counter everything, of tables that replaced others.
func (s *Store) tellAll(txn *memdb.Txn) {
	if s.counter == nil {
		return
	}
	s.counter.Reset()
	if it, err := txn.Get(tableQuota, indexID); err == nil {
		for _, q := range collect[Quota](it, nil) {
			s.counter.SetQuota(q.Tenant, q.Limits)
		}
	}
	if it, err := txn.Get(tableUsage, indexID); err == nil {
		for _, u := range collect[usageRow](it, nil) {
			s.counter.SetUse(u.Tenant, u.Use, "")
		}
	}
}

// Quota returns the quota of a tenant itself, without the default's; that of Everywhere is the default. One that was never set is empty.
func (s *Store) Quota(tenant string) (Quota, error) {
	row, err := first[Quota](s.read(), tableQuota, tenant)
	if err != nil || row == nil {
		return Quota{Tenant: tenant}, err
	}
	return *row, nil
}

// QuotaLimits returns what counts for a tenant: its own limits, else the default's, else Unlimited.
func (s *Store) QuotaLimits(tenant string) (limits [NumLimits]int64, err error) {
	txn := s.read()
	own, err := first[Quota](txn, tableQuota, tenant)
	if err != nil {
		return limits, err
	}
	def, err := first[Quota](txn, tableQuota, Everywhere)
	if err != nil {
		return limits, err
	}
	for l := range NumLimits {
		limits[l] = limitIn(l, own, def)
	}
	return limits, nil
}

// Usage returns what a tenant uses.
func (s *Store) Usage(tenant string) (Use, error) {
	row, err := usage(s.read(), tenant)
	return row.Use, err
}
