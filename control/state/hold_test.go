package state

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"
)

func hold(n int, h Hold) *SandboxHold {
	h.Run, h.At = "run", at(50)
	return &SandboxHold{ID: id(n), Hold: h}
}

// asleep are the commands that leave a paused sandbox.
func asleep(n int) []Command {
	return []Command{
		&SandboxCreate{Sandbox: starting(n)}, &SandboxRunning{ID: id(n), Node: "n1", StartedAt: at(2)}, &SandboxPaused{ID: id(n), Node: "n1", At: at(3)},
	}
}

func overQuota(t *testing.T, err error, want QuotaError) {
	t.Helper()
	var e *QuotaError
	must.True(t, errors.As(err, &e), must.Sprint(err))
	want.Tenant = DefaultTenant
	must.Eq(t, want, *e)
}

func TestHold_countsUntilTheFact(t *testing.T) {
	f := replay(t, append(asleep(1), asleep(2)...))
	must.NoError(t, second(f.store.apply(20, quota(map[string]int64{"concurrent_sandboxes": 1}))))
	r, err := f.store.apply(21, hold(1, Hold{Active: true}))
	must.NoError(t, err)
	must.Eq(t, 21, r.Sandbox.Hold.Index)
	u, err := f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, Use{2, 1, 1000, 512, 2048}, u)
	_, err = f.store.apply(22, hold(2, Hold{Active: true}))
	overQuota(t, err, QuotaError{Limit: LimitConcurrent, Max: 1, Used: 1, Asked: 1})
	must.NoError(t, second(f.store.apply(23, hold(1, Hold{Active: true}))), must.Sprint("again asks for nothing more"))
	must.NoError(t, second(f.store.apply(24, &SandboxUnhold{ID: id(1), Index: 21})), must.Sprint("which is not the hold by now"))
	_, err = f.store.apply(25, hold(2, Hold{Active: true}))
	must.Error(t, err)
	must.NoError(t, second(f.store.apply(26, &SandboxResumed{ID: id(1), Node: "n1", At: at(60), EndAt: at(70), MaxEnd: at(80)})))
	u, err = f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, Use{2, 1, 1000, 512, 2048}, u, must.Sprint("the fact counts as the hold did"))
	_, err = f.store.apply(27, hold(1, Hold{Active: true}))
	must.ErrorIs(t, err, ErrState, must.Sprint("it runs"))
	_, err = f.store.apply(28, hold(2, Hold{Active: true}))
	must.Error(t, err)
	must.NoError(t, second(f.store.apply(29, &SandboxPaused{ID: id(1), Node: "n1", At: at(90)})))
	r, err = f.store.apply(30, hold(2, Hold{Active: true}))
	must.NoError(t, err)
	must.NoError(t, second(f.store.apply(31, &SandboxUnhold{ID: id(2), Index: r.Sandbox.Hold.Index})))
	u, err = f.store.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, 0, u[LimitConcurrent])
}

func second[T any](_ T, err error) error { return err }

func TestHold_ofASuspendedTenant(t *testing.T) {
	f := replay(t, asleep(1))
	must.NoError(t, second(f.store.apply(20, &TenantPut{Tenant: Tenant{ID: DefaultTenant, Suspended: true}, Index: 1})))
	_, err := f.store.apply(21, hold(1, Hold{Active: true}))
	must.ErrorIs(t, err, ErrSuspended)
}

func TestHold_refuses(t *testing.T) {
	for name, h := range map[string]Hold{
		"less than nothing": {CPUMillis: -1, Run: "r", At: at(1)},
		"too much":          {MemoryMB: MaxLimit + 1, Run: "r", At: at(1)},
		"nobody":            {Active: true, At: at(1)},
		"never":             {Active: true, Run: "r"},
	} {
		must.Error(t, (&SandboxHold{ID: id(1), Hold: h}).check(), must.Sprint(name))
	}
}

func rated(n int, in, out int64) Sandbox {
	s := starting(n)
	s.RateIn, s.RateOut = in, out
	return s
}

func TestBandwidth_isReservedByWhatRuns(t *testing.T) {
	f := replay(t, []Command{quota(map[string]int64{"bandwidth_in_mbit": 100, "bandwidth_out_mbit": 50})})
	apply := func(c Command) error { return second(f.store.apply(f.store.Index()+1, c)) }
	used := func() [2]int64 {
		u, err := f.store.Usage(DefaultTenant)
		must.NoError(t, err)
		return [2]int64{u[LimitBandwidthIn], u[LimitBandwidthOut]}
	}
	must.NoError(t, apply(&SandboxCreate{Sandbox: rated(1, 60*Mbit, 10*Mbit+1)}))
	must.Eq(t, [2]int64{60, 11}, used(), must.Sprint("in whole Mbit/s"))
	overQuota(t, apply(&SandboxCreate{Sandbox: rated(2, 41*Mbit, Mbit)}), QuotaError{Limit: LimitBandwidthIn, Max: 100, Used: 60, Asked: 41})
	overQuota(t, apply(&SandboxCreate{Sandbox: rated(2, Mbit, 40*Mbit)}), QuotaError{Limit: LimitBandwidthOut, Max: 50, Used: 11, Asked: 40})
	err := apply(&SandboxCreate{Sandbox: rated(2, 0, Mbit)})
	overQuota(t, err, QuotaError{Limit: LimitBandwidthIn, Max: 100, Used: 60, Asked: Unlimited})
	must.EqError(t, err, "quota of tenant default: bandwidth_in_mbit: 60 of 100 are in use, and a sandbox without a rate asks for all: "+
		"give it one, or the tenant a default")
	must.NoError(t, apply(&SandboxCreate{Sandbox: rated(2, 40*Mbit, Mbit)}))
	must.NoError(t, apply(&SandboxRunning{ID: id(2), Node: "n1", StartedAt: at(2)}))

	// What a pause gives back, a resume asks for.
	must.NoError(t, apply(&SandboxPaused{ID: id(2), Node: "n1", At: at(3)}))
	must.Eq(t, [2]int64{60, 11}, used())
	must.NoError(t, apply(&SandboxCreate{Sandbox: rated(3, Mbit, Mbit)}))
	overQuota(t, apply(hold(2, Hold{Active: true})), QuotaError{Limit: LimitBandwidthIn, Max: 100, Used: 61, Asked: 40})
	must.NoError(t, apply(&SandboxEnd{Ends: []End{{ID: id(3), State: Failed, Reason: "x", At: at(9)}}}))
	must.NoError(t, apply(hold(2, Hold{Active: true})))
	must.NoError(t, apply(&SandboxResumed{ID: id(2), Node: "n1", At: at(4), EndAt: at(5), MaxEnd: at(6)}))
	must.Eq(t, [2]int64{100, 12}, used())

	// A change of a shape asks for the difference, and none for what it gives back.
	overQuota(t, apply(hold(2, Hold{RateIn: 41 * Mbit, RateOut: Mbit})), QuotaError{Limit: LimitBandwidthIn, Max: 100, Used: 100, Asked: 1})
	overQuota(t, apply(hold(2, Hold{RateIn: Unlimited, RateOut: Mbit})), QuotaError{Limit: LimitBandwidthIn, Max: 100, Used: 100, Asked: Unlimited})
	must.NoError(t, apply(hold(2, Hold{RateIn: 10 * Mbit, RateOut: 30 * Mbit})))
	must.Eq(t, [2]int64{100, 41}, used(), must.Sprint("the larger of both, until the node has it"))
	held := f.store.Index()
	must.NoError(t, apply(&SandboxNetwork{ID: id(2), Network: []byte("{}")}))
	must.Eq(t, [2]int64{100, 41}, used(), must.Sprint("another change of the network leaves it"))
	must.NoError(t, apply(&SandboxNetwork{ID: id(2), Network: []byte("{}"), Shaped: true, RateIn: 10 * Mbit, RateOut: 30 * Mbit, Hold: held}))
	must.Eq(t, [2]int64{70, 41}, used())
	must.Eq(t, summed(t, f.store, DefaultTenant), must1(f.store.Usage(DefaultTenant)))

	// One that has no rate yet, of a tenant that was given a limit since, is asked for one when it would run again.
	must.NoError(t, apply(quota(nil)))
	must.NoError(t, apply(&SandboxCreate{Sandbox: rated(4, 0, 0)}))
	must.NoError(t, apply(&SandboxRunning{ID: id(4), Node: "n1", StartedAt: at(2)}))
	must.NoError(t, apply(quota(map[string]int64{"bandwidth_out_mbit": 50})))
	must.NoError(t, apply(hold(4, Hold{CPUMillis: 2000})), must.Sprint("which this is not"))
	must.NoError(t, apply(&SandboxPaused{ID: id(4), Node: "n1", At: at(3)}))
	overQuota(t, apply(hold(4, Hold{Active: true})), QuotaError{Limit: LimitBandwidthOut, Max: 50, Used: 41, Asked: Unlimited})
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A sandbox on its way to another node is paused for that only: nobody else is given its place.
func TestMoving_countsAsRunning(t *testing.T) {
	f := replay(t, []Command{
		quota(map[string]int64{"concurrent_sandboxes": 1}), &SandboxCreate{Sandbox: starting(1)},
		&SandboxRunning{ID: id(1), Node: "n1", StartedAt: at(2)}, &SandboxPaused{ID: id(1), Node: "n1", At: at(3), Moving: true},
	})
	_, err := f.store.apply(20, &SandboxCreate{Sandbox: starting(2)})
	overQuota(t, err, QuotaError{Limit: LimitConcurrent, Max: 1, Used: 1, Asked: 1})
	must.NoError(t, second(f.store.apply(21, hold(1, Hold{Active: true}))))
	must.NoError(t, second(f.store.apply(22, &SandboxResumed{ID: id(1), Node: "n2", At: at(4), EndAt: at(5), MaxEnd: at(6)})))
}

// resumeInput is an operation of the model: a resume of a sandbox, or its pause.
type resumeInput struct {
	pause bool
	n     int
}

// Resumes by many clients at once look as if they had been made one by one: none is admitted when there is no room, none refused while there is.
func TestResume_isLinearizable(t *testing.T) {
	const room, boxes = 3, 6
	s := open(t, Config{Dir: t.TempDir()})
	t.Cleanup(func() { must.NoError(t, s.Close()) })
	for n := range boxes {
		for _, c := range asleep(n + 1) {
			mustApply(t, s, c)
		}
	}
	mustApply(t, s, quota(map[string]int64{"concurrent_sandboxes": room}))
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	do := func(in resumeInput, cs ...Command) bool {
		call := time.Since(start).Nanoseconds()
		var err error
		for _, c := range cs {
			if _, err = s.Apply(t.Context(), c); err != nil {
				break
			}
		}
		back := time.Since(start).Nanoseconds()
		var e *QuotaError
		if err != nil && !errors.As(err, &e) {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: in.n, Input: in, Call: call, Output: err == nil, Return: back})
		return err == nil
	}
	var wg sync.WaitGroup
	for n := range boxes {
		wg.Go(func() {
			for range 20 {
				if do(resumeInput{n: n}, hold(n+1, Hold{Active: true})) {
					mustResume := &SandboxResumed{ID: id(n + 1), Node: "n1", At: at(4), EndAt: at(5), MaxEnd: at(6)}
					do(resumeInput{pause: true, n: n}, mustResume, &SandboxPaused{ID: id(n + 1), Node: "n1", At: at(7)})
				}
			}
		})
	}
	wg.Wait()
	model := porcupine.Model{
		Init: func() any { return 0 },
		Step: func(st, in, out any) (bool, any) {
			running, op, ok := st.(int), in.(resumeInput), out.(bool)
			if op.pause {
				return ok, running - 1
			}
			if fits := running < room; fits != ok {
				return false, st
			} else if fits {
				running++
			}
			return true, running
		},
	}
	must.Eq(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, 30*time.Second))
}
