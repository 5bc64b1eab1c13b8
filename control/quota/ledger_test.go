package quota

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func id(n int) api.SandboxID { return api.SandboxID(fmt.Sprintf("i%020d", n)) }

func box(cpu int64) state.Use {
	return state.Use{state.LimitSandboxes: 1, state.LimitConcurrent: 1, state.LimitCPU: cpu, state.LimitMemory: 512}
}

func TestReserve_holdsUntilCountedOrReleased(t *testing.T) {
	l := New(nil)
	l.SetQuota("a", map[string]int64{"cpu_millis": 3000})
	must.NoError(t, l.Reserve("a", id(1), box(1000)))
	must.NoError(t, l.Reserve("a", id(1), box(1000)), must.Sprint("again is the same"))
	must.NoError(t, l.Reserve("a", id(2), box(1000)))
	l.SetUse("a", box(1000), id(1)) // the tables count the first one
	l.Release("a", id(1))           // which does nothing then
	must.NoError(t, l.Reserve("a", id(3), box(1000)))
	err := l.Reserve("a", id(4), box(500))
	var e *state.QuotaError
	must.True(t, errors.As(err, &e))
	must.Eq(t, state.QuotaError{Tenant: "a", Limit: state.LimitCPU, Max: 3000, Used: 3000, Asked: 500}, *e)
	l.Release("a", id(3))
	l.Release("a", id(3))
	l.Release("a", id(99))
	must.NoError(t, l.Reserve("a", id(4), box(1000)))
	must.Error(t, l.Reserve("a", id(5), box(1)), must.Sprint("two releases gave back one"))
	must.NoError(t, l.Reserve("b", id(6), box(1_000_000)), must.Sprint("another tenant"))
}

func TestQuota_ownLimitsGoBeforeTheDefault(t *testing.T) {
	l := New(nil)
	must.NoError(t, l.Reserve("a", id(1), box(1)))
	l.SetQuota(state.Everywhere, map[string]int64{"sandboxes": 1})
	must.Error(t, l.Reserve("a", id(2), box(1)))
	must.NoError(t, l.Reserve("new", id(3), box(1)))
	must.Error(t, l.Reserve("new", id(4), box(1)))
	l.SetQuota("a", map[string]int64{"sandboxes": state.Unlimited})
	must.NoError(t, l.Reserve("a", id(2), box(1)))
	l.SetQuota("a", nil)
	must.Error(t, l.Reserve("a", id(5), box(1)))
	l.Reset()
	must.NoError(t, l.Reserve("a", id(5), box(1)))
}

func TestRate_admitsItsBurstAndThenItsRate(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(func() time.Time { return now })
	l.SetQuota("a", map[string]int64{"api_calls_per_second": 10, "creates_per_second": 0})
	for range 10 {
		must.NoError(t, l.Call("a"))
	}
	err := l.Call("a")
	var e *RateError
	must.True(t, errors.As(err, &e))
	must.Eq(t, 100*time.Millisecond, e.RetryAfter())
	must.Eq(t, 429, api.StatusOf(err))
	must.Eq(t, api.CodeRate, api.AsError(err).ErrorCode)
	must.StrContains(t, err.Error(), "api_calls_per_second")
	now = now.Add(100 * time.Millisecond)
	must.NoError(t, l.Call("a"))
	must.Error(t, l.Call("a"))
	now = now.Add(time.Hour)
	for range 10 {
		must.NoError(t, l.Call("a"))
	}
	must.Error(t, l.Call("a"), must.Sprint("an hour's rest is no more than a burst"))
	must.Error(t, l.Create("a"), must.Sprint("none at all"))
	must.NoError(t, l.Create("b"))
}

func TestRate_isExactWhateverCallsAtOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(func() time.Time { return now })
	l.SetQuota("a", map[string]int64{"api_calls_per_second": 100})
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			if l.Call("a") == nil {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	must.Eq(t, 100, admitted.Load())
}

// operation of the model: a reservation of a size, or the release of one.
type operation struct {
	release bool
	cpu     int64
}

func TestReserve_isLinearizable(t *testing.T) {
	const room = 2500
	l := New(nil)
	l.SetQuota("a", map[string]int64{"cpu_millis": room, "sandboxes": 3})
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	record := func(client int, op operation, f func() bool) bool {
		call := time.Since(start).Nanoseconds()
		ok := f()
		back := time.Since(start).Nanoseconds()
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: ok, Return: back})
		return ok
	}
	var wg sync.WaitGroup
	for client := range 4 {
		wg.Go(func() {
			for i := range 50 {
				n := client*1000 + i
				cpu := int64(500 + 500*(n%3))
				if record(client, operation{cpu: cpu}, func() bool { return l.Reserve("a", id(n), box(cpu)) == nil }) {
					record(client, operation{true, cpu}, func() bool { l.Release("a", id(n)); return true })
				}
			}
		})
	}
	wg.Wait()
	type held struct{ cpu, n int64 }
	model := porcupine.Model{
		Init: func() any { return held{} },
		Step: func(st, in, out any) (bool, any) {
			h, op, ok := st.(held), in.(operation), out.(bool)
			if op.release {
				return true, held{h.cpu - op.cpu, h.n - 1}
			}
			fits := h.cpu+op.cpu <= room && h.n < 3
			if fits {
				h = held{h.cpu + op.cpu, h.n + 1}
			}
			return fits == ok, h
		},
	}
	must.Eq(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, 30*time.Second))
}

func TestChecks_doNotAllocate(t *testing.T) {
	l := New(nil)
	l.SetQuota("a", map[string]int64{"cpu_millis": 1 << 40, "api_calls_per_second": 1 << 40})
	one := id(1)
	ask := box(1000)
	must.Eq(t, 0, testing.AllocsPerRun(1000, func() {
		_ = l.Reserve("a", one, ask)
		l.Release("a", one)
	}))
	must.Eq(t, 0, testing.AllocsPerRun(1000, func() { _ = l.Call("a") }))
}

// BenchmarkCheck is what every API call, and every create, pays. The floor is one atomic addition.
func BenchmarkCheck(b *testing.B) {
	l := New(nil)
	l.SetQuota("a", map[string]int64{"cpu_millis": 1 << 40, "sandboxes": 1 << 40, "api_calls_per_second": 1 << 40})
	l.SetQuota("b", map[string]int64{"sandboxes": 1})
	const each = 200 // so short that the figures are those of runs that nothing interrupted
	one, ask := id(1), box(1000)
	var x atomic.Int64
	measure := func(f func()) float64 {
		var runs []float64
		for range 500 {
			start := time.Now()
			for range each {
				f()
			}
			runs = append(runs, float64(time.Since(start).Nanoseconds())/each)
		}
		slices.Sort(runs)
		return runs[len(runs)/2]
	}
	var call, clock, reserve, floor float64
	for b.Loop() {
		call += measure(func() { _ = l.Call("a") })
		clock += measure(func() { _ = time.Now() })
		reserve += measure(func() {
			_ = l.Reserve("a", one, ask)
			l.Release("a", one)
		})
		floor += measure(func() { x.Add(1) })
	}
	b.ReportMetric(call/float64(b.N), "call-ns")
	b.ReportMetric(clock/float64(b.N), "clock-ns")
	b.ReportMetric(reserve/float64(b.N), "reserve-ns")
	b.ReportMetric(floor/float64(b.N), "floor-ns")
}
