package state

import (
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Strategy is how a pool decides how many slots it keeps.
type Strategy string

// The strategies.
const (
	StrategyFixed      Strategy = "fixed"      // Min of them
	StrategyDynamic    Strategy = "dynamic"    // more after misses, fewer after idle times, between Min and Max
	StrategyHistorical Strategy = "historical" // what the same time of past days has taken, between Min and Max
)

// Limits of a pool.
const (
	MaxPoolSlots    = 10_000
	MaxPools        = 1000     // of all tenants together
	MaxPoolWarmUps  = 16       // commands
	MaxPoolWarmUp   = 16 << 10 // bytes of all commands together
	MaxPoolName     = 63       // bytes
	DemandWindow    = 10 * time.Minute
	demandWindows   = int(7 * 24 * time.Hour / DemandWindow) // kept for each pool
	minPoolInterval = time.Second
)

// Pool keeps sandboxes of one template and size running that nobody has yet, so that a create needs to start none.
type Pool struct {
	ID     api.PoolID `codec:"id"`
	Tenant string     `codec:"tenant"`
	Name   string     `codec:"name"`   // unique for a tenant
	Shared bool       `codec:"shared"` // sandboxes of other tenants may come from it, too

	Template  string `codec:"template"` // name, as its tenant says it
	CPUMillis int64  `codec:"cpu_millis"`
	MemoryMB  int64  `codec:"memory_mb"` // MiB
	DiskMB    int64  `codec:"disk_mb"`   // MiB
	QoS       string `codec:"qos"`
	Profile   string `codec:"profile"`
	Where     string `codec:"where"` // where slots may run: placement.Rules

	Strategy  Strategy      `codec:"strategy"`
	Min       int           `codec:"min"`       // slots; all of them where the strategy is fixed
	Max       int           `codec:"max"`       // slots; Min where the strategy is fixed
	Threshold int           `codec:"threshold"` // refill begins once fewer slots than this are there; 0: at once
	Rate      int           `codec:"rate"`      // percent by which a dynamic pool changes at a time
	MaxAge    time.Duration `codec:"max_age"`   // of a slot that nobody takes
	Interval  time.Duration `codec:"interval"`  // between two looks at age and size
	WarmUp    []string      `codec:"warm_up"`   // shell commands that have ended well before a slot counts

	Hits   uint64 `codec:"hits"`   // creates that took a slot
	Misses uint64 `codec:"misses"` // creates that would have, had there been one
	Demand Demand `codec:"demand"`
	Target int    `codec:"target"` // of a dynamic pool, as it was last

	CreatedAt   time.Time `codec:"created_at"`
	CreatedBy   string    `codec:"created_by"`
	UpdatedAt   time.Time `codec:"updated_at"`
	CreateIndex uint64    `codec:"create_index"`
	ModifyIndex uint64    `codec:"modify_index"`
}

// Demand is how many creates a pool was asked for in each DemandWindow, the last one last.
type Demand struct {
	First  int64    `codec:"first"` // number of the first window since 1970
	Counts []uint32 `codec:"counts"`
}

// WindowOf returns the number of the window that t is in.
func WindowOf(t time.Time) int64 { return t.Unix() / int64(DemandWindow/time.Second) }

// At returns the demand in a window; known is false before the first.
func (d Demand) At(window int64) (n uint32, known bool) {
	i := window - d.First
	if len(d.Counts) == 0 || i < 0 {
		return 0, false
	}
	if i >= int64(len(d.Counts)) {
		return 0, true
	}
	return d.Counts[i], true
}

// add returns d with n more in a window, and without windows that are too old. d stays as it is.
func (d Demand) add(window int64, n uint32) Demand {
	if len(d.Counts) == 0 || window-d.First >= int64(2*demandWindows) {
		return Demand{First: window, Counts: []uint32{n}}
	}
	if window < d.First {
		return d
	}
	counts := make([]uint32, max(len(d.Counts), int(window-d.First)+1))
	copy(counts, d.Counts)
	counts[window-d.First] += n
	if cut := len(counts) - demandWindows; cut > 0 {
		counts, d.First = counts[cut:], d.First+int64(cut)
	}
	return Demand{First: d.First, Counts: counts}
}

// SlotState is how far a slot is.
type SlotState string

// The states. A slot that is claimed is none any more, but the sandbox of its id.
const (
	SlotMaking SlotState = "making"
	SlotReady  SlotState = "ready"
)

// Slot is a sandbox that runs, or is about to, and that nobody has yet.
type Slot struct {
	ID        api.SandboxID `codec:"id"` // of the sandbox that it becomes
	Pool      api.PoolID    `codec:"pool"`
	Tenant    string        `codec:"tenant"` // of the pool
	Template  string        `codec:"template"`
	Digest    string        `codec:"digest"`
	Where     string        `codec:"where"` // the rules that it was placed by: its template's and the pool's
	State     SlotState     `codec:"state"`
	Node      api.NodeID    `codec:"node"`    // where ready
	Creator   string        `codec:"creator"` // run of the control service that makes it, as Sandbox.Creator
	CreatedAt time.Time     `codec:"created_at"`
	ReadyAt   time.Time     `codec:"ready_at"`

	CreateIndex uint64 `codec:"create_index"`
	ModifyIndex uint64 `codec:"modify_index"`
}

// PoolPut records a pool, new or changed. A new one whose tenant has its name is ErrExists; a changed one keeps its counts.
type PoolPut struct {
	Pool Pool `codec:"pool"`
}

// PoolDelete forgets a pool and all of its slots.
type PoolDelete struct {
	ID api.PoolID `codec:"id"`
}

// SlotsMake records slots that shall exist. Where their pool is gone nothing is recorded: ErrNotFound.
type SlotsMake struct {
	Slots []Slot `codec:"slots"` // 1 to MaxBatch, of one pool
}

// SlotIsReady records that a slot runs and is warm.
type SlotIsReady struct {
	ID   api.SandboxID `codec:"id"`
	Node api.NodeID    `codec:"node"`
	At   time.Time     `codec:"at"`
}

// SlotsDrop forgets slots: they shall not exist. Unknown ones are left alone.
type SlotsDrop struct {
	IDs []api.SandboxID `codec:"ids"` // 1 to MaxBatch
}

// SlotClaim makes a slot the sandbox of its id. One that is not ready, or not there, is ErrNotFound: somebody else has it. Where the
// sandbox's Request was served before, it is ErrExists with that sandbox.
type SlotClaim struct {
	Sandbox Sandbox `codec:"sandbox"` // that it is from now on: running, on the slot's node
}

// PoolCount adds to what is known of a pool's use.
type PoolCount struct {
	ID     api.PoolID `codec:"id"`
	Hits   uint64     `codec:"hits"`
	Misses uint64     `codec:"misses"`
	Window int64      `codec:"window"`
	Target int        `codec:"target"` // 0: unchanged
}

func (*PoolPut) kind() commandType     { return typePoolPut }
func (*PoolDelete) kind() commandType  { return typePoolDelete }
func (*SlotsMake) kind() commandType   { return typeSlotsMake }
func (*SlotIsReady) kind() commandType { return typeSlotIsReady }
func (*SlotsDrop) kind() commandType   { return typeSlotsDrop }
func (*SlotClaim) kind() commandType   { return typeSlotClaim }
func (*PoolCount) kind() commandType   { return typePoolCount }

func (c *PoolPut) check() error {
	p := &c.Pool
	if _, err := api.ParsePoolID(string(p.ID)); err != nil {
		return err
	}
	if err := CheckTenantID(p.Tenant); err != nil {
		return err
	}
	total := 0
	for _, w := range p.WarmUp {
		total += len(w)
	}
	switch {
	case p.Name == "" || len(p.Name) > MaxPoolName || !clean(p.Name):
		return limitErrorf("name", "is not 1 to %d bytes of UTF-8", MaxPoolName)
	case p.Template == "" || len(p.Template) > MaxTemplateName || !clean(p.Template):
		return limitErrorf("template", "is not 1 to %d bytes of UTF-8", MaxTemplateName)
	case p.Strategy != StrategyFixed && p.Strategy != StrategyDynamic && p.Strategy != StrategyHistorical:
		return limitErrorf("strategy", "is %.40q, there are %s, %s and %s", p.Strategy, StrategyFixed, StrategyDynamic, StrategyHistorical)
	case p.Min < 0 || p.Min > MaxPoolSlots:
		return limitErrorf("min", "is %d, 0 to %d slots are allowed", p.Min, MaxPoolSlots)
	case p.Max < p.Min || p.Max > MaxPoolSlots:
		return limitErrorf("max", "is %d, %d (min) to %d slots are allowed", p.Max, p.Min, MaxPoolSlots)
	case p.Threshold < 0 || p.Threshold > p.Max:
		return limitErrorf("refill_threshold", "is %d, 0 to %d (max) slots are allowed", p.Threshold, p.Max)
	case p.Rate < 1 || p.Rate > 1000:
		return limitErrorf("rate", "is %d, 1 to 1000 percent are allowed", p.Rate)
	case p.MaxAge < time.Minute || p.MaxAge > 30*24*time.Hour:
		return limitErrorf("max_age", "is %s, 1m to 720h are allowed", p.MaxAge)
	case p.Interval < minPoolInterval || p.Interval > time.Hour:
		return limitErrorf("cleanup_interval", "is %s, %s to 1h are allowed", p.Interval, minPoolInterval)
	case len(p.WarmUp) > MaxPoolWarmUps || total > MaxPoolWarmUp:
		return limitErrorf("warm_up", "has %d commands of %d bytes, at most %d of %d are allowed", len(p.WarmUp), total, MaxPoolWarmUps, MaxPoolWarmUp)
	case p.CPUMillis <= 0 || p.MemoryMB <= 0:
		return limitErrorf("cpu_millis and memory_mb", "are missing")
	}
	return nil
}

func (c *PoolDelete) check() error {
	_, err := api.ParsePoolID(string(c.ID))
	return err
}

func (c *SlotsMake) check() error {
	if len(c.Slots) == 0 || len(c.Slots) > MaxBatch {
		return limitErrorf("slots", "has %d entries, 1 to %d are allowed", len(c.Slots), MaxBatch)
	}
	for _, s := range c.Slots {
		if err := checkID(s.ID); err != nil {
			return err
		}
		if s.State != SlotMaking || s.Pool != c.Slots[0].Pool || s.Digest == "" || s.CreatedAt.IsZero() {
			return limitErrorf("slots", "are not new ones of one pool")
		}
	}
	return nil
}

func (c *SlotIsReady) check() error {
	if c.Node == "" || c.At.IsZero() {
		return limitErrorf("slot", "lacks its node or time")
	}
	return checkID(c.ID)
}

func (c *SlotsDrop) check() error {
	if len(c.IDs) == 0 || len(c.IDs) > MaxBatch {
		return limitErrorf("ids", "has %d entries, 1 to %d are allowed", len(c.IDs), MaxBatch)
	}
	return nil
}

func (c *SlotClaim) check() error {
	s := c.Sandbox
	if s.State != Running || s.Node == "" || s.StartedAt.IsZero() {
		return limitErrorf("state", "is %q on node %q, a claimed sandbox runs", s.State, s.Node)
	}
	if s.Request != "" {
		if err := checkID(s.Request); err != nil {
			return err
		}
	}
	s.State = Starting
	return (&SandboxCreate{Sandbox: s}).check()
}

func (c *PoolCount) check() error {
	_, err := api.ParsePoolID(string(c.ID))
	return err
}

func (c *PoolPut) apply(tx *writeTx) (Result, error) {
	p := c.Pool
	if err := tx.tenant(p.Tenant); err != nil {
		return Result{}, err
	}
	old, err := first[Pool](tx.txn, tablePool, string(p.ID))
	if err != nil {
		return Result{}, err
	}
	it, err := tx.txn.Get(tablePool, indexID)
	if err != nil {
		return Result{}, fmt.Errorf("read pools: %w", err)
	}
	all := collect[Pool](it, nil)
	for _, other := range all {
		if other.Tenant == p.Tenant && other.Name == p.Name && other.ID != p.ID {
			return Result{Pool: other}, fmt.Errorf("pool %s: %w", p.Name, ErrExists)
		}
	}
	if old == nil && len(all) >= MaxPools {
		return Result{}, limitErrorf("pools", "are %d already, at most %d are allowed", len(all), MaxPools)
	}
	p.CreateIndex = tx.index
	if old != nil {
		p.CreateIndex, p.CreatedAt, p.CreatedBy = old.CreateIndex, old.CreatedAt, old.CreatedBy
		p.Hits, p.Misses, p.Demand, p.Target = old.Hits, old.Misses, old.Demand, old.Target
	}
	return tx.putPool(&p)
}

func (c *PoolDelete) apply(tx *writeTx) (Result, error) {
	p, err := tx.pool(c.ID)
	if err != nil {
		return Result{}, err
	}
	slots, err := slotsOf(tx.txn, c.ID)
	if err != nil {
		return Result{}, err
	}
	for _, s := range slots {
		if err := tx.txn.Delete(tableSlot, &s); err != nil {
			return Result{}, fmt.Errorf("drop slot %s: %w", s.ID, err)
		}
	}
	if err := tx.txn.Delete(tablePool, &p); err != nil {
		return Result{}, fmt.Errorf("delete pool %s: %w", p.Name, err)
	}
	return Result{Pool: p, Changed: 1 + len(slots)}, nil
}

func (c *SlotsMake) apply(tx *writeTx) (Result, error) {
	p, err := tx.pool(c.Slots[0].Pool)
	if err != nil {
		return Result{}, err
	}
	for _, s := range c.Slots {
		for _, table := range []string{tableSlot, tableSandbox} {
			row, err := tx.txn.First(table, indexID, string(s.ID))
			if err != nil {
				return Result{}, fmt.Errorf("read table %s: %w", table, err)
			}
			if row != nil {
				return Result{}, fmt.Errorf("slot %s: %w", s.ID, ErrExists)
			}
		}
		s.CreateIndex, s.ModifyIndex = tx.index, tx.index
		if err := tx.txn.Insert(tableSlot, &s); err != nil {
			return Result{}, fmt.Errorf("write slot %s: %w", s.ID, err)
		}
	}
	return Result{Pool: p, Changed: len(c.Slots)}, nil
}

func (c *SlotIsReady) apply(tx *writeTx) (Result, error) {
	s, err := first[Slot](tx.txn, tableSlot, string(c.ID))
	if err != nil {
		return Result{}, err
	}
	if s == nil {
		return Result{}, fmt.Errorf("slot %s: %w", c.ID, ErrNotFound)
	}
	if s.State == SlotReady {
		return Result{}, nil
	}
	next := *s
	next.State, next.Node, next.ReadyAt, next.ModifyIndex = SlotReady, c.Node, c.At, tx.index
	if err := tx.txn.Insert(tableSlot, &next); err != nil {
		return Result{}, fmt.Errorf("write slot %s: %w", c.ID, err)
	}
	return Result{Changed: 1}, nil
}

func (c *SlotsDrop) apply(tx *writeTx) (Result, error) {
	var r Result
	for _, id := range c.IDs {
		s, err := first[Slot](tx.txn, tableSlot, string(id))
		if err != nil {
			return Result{}, err
		}
		if s == nil {
			continue
		}
		if err := tx.txn.Delete(tableSlot, s); err != nil {
			return Result{}, fmt.Errorf("drop slot %s: %w", id, err)
		}
		r.Changed++
	}
	return r, nil
}

func (c *SlotClaim) apply(tx *writeTx) (Result, error) {
	s := c.Sandbox
	slot, err := first[Slot](tx.txn, tableSlot, string(s.ID))
	if err != nil {
		return Result{}, err
	}
	if slot == nil || slot.State != SlotReady || slot.Node != s.Node {
		return Result{}, fmt.Errorf("slot %s: %w", s.ID, ErrNotFound)
	}
	if err := tx.tenant(s.Tenant); err != nil {
		return Result{}, err
	}
	if s.Request != "" {
		old, err := first[Sandbox](tx.txn, tableSandbox, string(s.Request))
		if err == nil && old == nil {
			old, err = tx.asked(s.Request)
		}
		if err != nil {
			return Result{}, err
		}
		if old != nil {
			return Result{Sandbox: *old}, fmt.Errorf("sandbox %s: %w", s.Request, ErrExists)
		}
	}
	if err := tx.admit(s.Tenant, Ask(nil, &s)); err != nil {
		return Result{}, err
	}
	if err := tx.txn.Delete(tableSlot, slot); err != nil {
		return Result{}, fmt.Errorf("take slot %s: %w", s.ID, err)
	}
	s.CreateIndex = tx.index
	if err := tx.spawned(&s); err != nil {
		return Result{}, err
	}
	return changed(s, tx.putSandbox(&s))
}

func (c *PoolCount) apply(tx *writeTx) (Result, error) {
	p, err := tx.pool(c.ID)
	if err != nil {
		return Result{}, err
	}
	p.Hits += c.Hits
	p.Misses += c.Misses
	if n := c.Hits + c.Misses; n > 0 {
		p.Demand = p.Demand.add(c.Window, uint32(min(n, 1<<31)))
	}
	if c.Target != 0 {
		p.Target = c.Target
	}
	return tx.putPool(&p)
}

// pool returns a copy that the caller may change and put back.
func (t *writeTx) pool(id api.PoolID) (Pool, error) {
	p, err := first[Pool](t.txn, tablePool, string(id))
	if err != nil {
		return Pool{}, err
	}
	if p == nil {
		return Pool{}, fmt.Errorf("pool %s: %w", id, ErrNotFound)
	}
	return *p, nil
}

func (t *writeTx) putPool(p *Pool) (Result, error) {
	p.ModifyIndex = t.index
	if err := t.txn.Insert(tablePool, p); err != nil {
		return Result{}, fmt.Errorf("write pool %s: %w", p.Name, err)
	}
	return Result{Pool: *p, Changed: 1}, nil
}

func slotsOf(txn *memdb.Txn, id api.PoolID) ([]Slot, error) {
	it, err := txn.Get(tableSlot, indexPool, string(id))
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	return collect[Slot](it, nil), nil
}

// Pools returns all pools, by id.
func (s *Store) Pools() ([]Pool, error) {
	it, err := s.read().Get(tablePool, indexID)
	if err != nil {
		return nil, fmt.Errorf("list pools: %w", err)
	}
	return collect[Pool](it, nil), nil
}

// PoolNamed returns a tenant's pool by its name.
func (s *Store) PoolNamed(tenant, name string) (Pool, error) {
	all, err := s.Pools()
	if err != nil {
		return Pool{}, err
	}
	for _, p := range all {
		if p.Tenant == tenant && p.Name == name {
			return p, nil
		}
	}
	return Pool{}, fmt.Errorf("pool %.80q: %w", name, ErrNotFound)
}

// Slots returns the slots of a pool, by id.
func (s *Store) Slots(id api.PoolID) ([]Slot, error) { return slotsOf(s.read(), id) }

// EachSlot calls f with the slots of a pool until f returns false. What f gets is not changed by anybody, f included.
func (s *Store) EachSlot(id api.PoolID, f func(*Slot) bool) error {
	it, err := s.read().Get(tableSlot, indexPool, string(id))
	if err != nil {
		return fmt.Errorf("list slots: %w", err)
	}
	for row := it.Next(); row != nil; row = it.Next() {
		if slot, ok := row.(*Slot); ok && !f(slot) {
			return nil
		}
	}
	return nil
}

// AllSlots returns the slots of all pools.
func (s *Store) AllSlots() ([]Slot, error) {
	it, err := s.read().Get(tableSlot, indexID)
	if err != nil {
		return nil, fmt.Errorf("list slots: %w", err)
	}
	return collect[Slot](it, nil), nil
}

// Slot returns a slot by its id.
func (s *Store) Slot(id api.SandboxID) (Slot, error) {
	row, err := first[Slot](s.read(), tableSlot, string(id))
	if err != nil {
		return Slot{}, err
	}
	if row == nil {
		return Slot{}, fmt.Errorf("slot %s: %w", id, ErrNotFound)
	}
	return *row, nil
}
