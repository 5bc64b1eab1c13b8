package state

import (
	"errors"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

const poolA, poolB api.PoolID = "paaaaaaaaaaaaaaaaaaaa", "pbbbbbbbbbbbbbbbbbbbb"

func poolOf(pid api.PoolID, name string) Pool {
	return Pool{
		ID: pid, Tenant: DefaultTenant, Name: name, Template: "base", CPUMillis: 1000, MemoryMB: 512, DiskMB: 1024, Strategy: StrategyFixed,
		Min: 3, Max: 3, Rate: 50, MaxAge: time.Hour, Interval: time.Minute, WarmUp: []string{"true"}, CreatedAt: at(30), CreatedBy: "key:x",
	}
}

func slotOf(n int, pid api.PoolID) Slot {
	return Slot{ID: id(n), Pool: pid, Tenant: DefaultTenant, Template: "base", Digest: "sha256:ab", State: SlotMaking, Creator: "run", CreatedAt: at(31)}
}

// claimed is the sandbox that a slot becomes.
func claimed(n int) Sandbox {
	s := starting(n)
	s.State, s.Node, s.StartedAt, s.Pool, s.Warm = Running, "n1", at(33), poolA, true
	return s
}

// poolScript is the part of script about pools.
func poolScript() []Command {
	return []Command{
		&PoolPut{Pool: poolOf(poolA, "a")},
		&PoolPut{Pool: poolOf(poolB, "a")}, // refused: the name is taken
		&PoolPut{Pool: poolOf(poolB, "b")},
		&SlotsMake{Slots: []Slot{slotOf(70, poolA), slotOf(71, poolA), slotOf(72, poolA)}},
		&SlotsMake{Slots: []Slot{slotOf(73, poolB)}},
		&SlotsMake{Slots: []Slot{slotOf(70, poolB)}}, // refused: it is there
		&SlotIsReady{ID: id(70), Node: "n1", At: at(32)},
		&SlotIsReady{ID: id(71), Node: "n1", At: at(32)},
		&SlotIsReady{ID: id(79), Node: "n1", At: at(32)}, // refused: unknown
		&SlotClaim{Sandbox: claimed(70)},
		&SlotClaim{Sandbox: claimed(70)}, // refused: somebody has it
		&SlotClaim{Sandbox: claimed(72)}, // refused: it is not ready
		&SlotsDrop{IDs: []api.SandboxID{id(71), id(79)}},
		&PoolCount{ID: poolA, Hits: 1, Misses: 2, Window: WindowOf(at(33)), Target: 4},
		&PoolDelete{ID: poolB},
		&SandboxEnd{Ends: []End{{ID: id(70), State: Stopped, Reason: "x", At: at(80)}}},
	}
}

func TestSlots_oneClaimEach(t *testing.T) {
	f := replay(t, poolScript()[:8])
	first, err := f.store.apply(100, &SlotClaim{Sandbox: claimed(70)})
	must.NoError(t, err)
	must.Eq(t, Running, first.Sandbox.State)
	_, err = f.store.Slot(id(70))
	must.ErrorIs(t, err, ErrNotFound)
	_, err = f.store.apply(101, &SlotClaim{Sandbox: claimed(70)})
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("somebody has it"))
	_, err = f.store.apply(102, &SlotClaim{Sandbox: claimed(72)})
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("it is not ready"))
	elsewhere := claimed(71)
	elsewhere.Node = "n2"
	_, err = f.store.apply(103, &SlotClaim{Sandbox: elsewhere})
	must.ErrorIs(t, err, ErrNotFound, must.Sprint("it is on another node than the claim says"))
	use, err := f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, 1, use[LimitSandboxes], must.Sprint("slots count for nobody, the claimed one does"))
}

func TestSlots_claimIsHeldToTheQuota(t *testing.T) {
	f := replay(t, poolScript()[:8])
	_, err := f.store.apply(100, &QuotaPut{Quota: Quota{Tenant: DefaultTenant, Limits: map[string]int64{"sandboxes": 0}}})
	must.NoError(t, err)
	_, err = f.store.apply(101, &SlotClaim{Sandbox: claimed(70)})
	var q *QuotaError
	must.True(t, errors.As(err, &q))
	_, err = f.store.Slot(id(70))
	must.NoError(t, err, must.Sprint("it is there for the next one"))
}

func TestPoolDelete_takesItsSlotsAlong(t *testing.T) {
	f := replay(t, poolScript()[:8])
	_, err := f.store.apply(100, &PoolDelete{ID: poolA})
	must.NoError(t, err)
	slots, err := f.store.AllSlots()
	must.NoError(t, err)
	must.Len(t, 1, slots)
	must.Eq(t, poolB, slots[0].Pool)
	_, err = f.store.apply(101, &SlotsMake{Slots: []Slot{slotOf(75, poolA)}})
	must.ErrorIs(t, err, ErrNotFound)
}

func TestDemand_countsByWindow(t *testing.T) {
	d := Demand{}.add(100, 3).add(100, 1).add(103, 2)
	for window, want := range map[int64]uint32{100: 4, 101: 0, 103: 2, 105: 0} {
		n, known := d.At(window)
		must.True(t, known)
		must.Eq(t, want, n)
	}
	_, known := d.At(99)
	must.False(t, known)
	must.Eq(t, d, d.add(99, 7), must.Sprint("of before the first"))
	d = d.add(100+int64(demandWindows), 9)
	must.Len(t, demandWindows, d.Counts)
	n, known := d.At(100 + int64(demandWindows))
	must.True(t, known)
	must.Eq(t, 9, n)
	_, known = d.At(100)
	must.False(t, known, must.Sprint("a week is kept"))
	must.Eq(t, Demand{First: 1 << 20, Counts: []uint32{1}}, d.add(1<<20, 1))
}

func TestPoolPut_refuses(t *testing.T) {
	for field, change := range map[string]func(*Pool){
		"name":             func(p *Pool) { p.Name = "" },
		"template":         func(p *Pool) { p.Template = "" },
		"strategy":         func(p *Pool) { p.Strategy = "guess" },
		"min":              func(p *Pool) { p.Min = -1 },
		"max":              func(p *Pool) { p.Max = 2 },
		"refill_threshold": func(p *Pool) { p.Threshold = 4 },
		"rate":             func(p *Pool) { p.Rate = 0 },
		"max_age":          func(p *Pool) { p.MaxAge = time.Second },
		"cleanup_interval": func(p *Pool) { p.Interval = 0 },
		"warm_up":          func(p *Pool) { p.WarmUp = make([]string, 17) },
	} {
		p := poolOf(poolA, "a")
		change(&p)
		var limit *LimitError
		must.True(t, errors.As((&PoolPut{Pool: p}).check(), &limit), must.Sprint(field))
		must.Eq(t, field, limit.Field)
	}
}
