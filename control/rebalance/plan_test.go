package rebalance

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

const gib = 1 << 30

// machine has ten cores and 10 GiB, and so many sandboxes of one core and 1 GiB, all in use.
func machine(id string, boxes int) Machine {
	m := Machine{ID: api.NodeID(id), Takes: true, Store: "s", CPUMillis: 10_000, Memory: 10 * gib}
	one := Amount{1000, gib}
	for i := range boxes {
		m.Boxes = append(m.Boxes, Box{ID: api.SandboxID(fmt.Sprintf("%s%d", id, i)), Class: api.QoSBurstable, Reserved: one, Used: one, Ahead: one})
	}
	return m
}

func TestPlan_evensOutAndStops(t *testing.T) {
	plan := Plan([]Machine{machine("a", 8), machine("b", 0)}, Limits{})
	must.Len(t, 4, plan)
	must.Eq(t, Move{Sandbox: "a0", From: "a", To: "b", Gain: 10}, plan[0], must.Sprint("80 and 0 are 40 points from their mean, 70 and 10 are 30"))
	must.SliceEmpty(t, Plan([]Machine{machine("a", 3), machine("b", 3)}, Limits{}), must.Sprint("there is nothing to gain"))
	must.SliceEmpty(t, Plan([]Machine{machine("a", 4), machine("b", 3)}, Limits{}), must.Sprint("the other way round is no better"))
	must.SliceEmpty(t, Plan(nil, Limits{}))
	must.Len(t, 1, Plan([]Machine{machine("a", 8), machine("b", 0)}, Limits{Moves: 1}))
	must.SliceEmpty(t, Plan([]Machine{machine("a", 8), machine("b", 0)}, Limits{MinGain: 11}))
}

func TestPlan_fillsTheEmptiestFirst(t *testing.T) {
	plan := Plan([]Machine{machine("a", 9), machine("b", 3), machine("c", 0)}, Limits{Moves: 2})
	must.Len(t, 2, plan)
	for _, m := range plan {
		must.Eq(t, "c", m.To)
	}
}

func TestPlan_leavesAlone(t *testing.T) {
	for name, change := range map[string]func(a, b *Machine){
		"a node that takes no work":       func(_, b *Machine) { b.Takes = false },
		"another store":                   func(_, b *Machine) { b.Store = "t" },
		"no store":                        func(a, b *Machine) { a.Store, b.Store = "", "" },
		"no room for what is reserved":    func(_, b *Machine) { b.CPUMillis = 500 },
		"what stays":                      func(a, _ *Machine) { each(a, func(x *Box) { x.Stays = "it has rules of its own" }) },
		"a class that may not be moved":   func(a, _ *Machine) { each(a, func(x *Box) { x.Class = api.QoSGuaranteed }) },
		"what reserves much and uses not": func(a, _ *Machine) { each(a, func(x *Box) { x.Ahead = Amount{} }) },
	} {
		t.Run(name, func(t *testing.T) {
			a, b := machine("a", 8), machine("b", 0)
			change(&a, &b)
			must.SliceEmpty(t, Plan([]Machine{a, b}, Limits{}))
		})
	}
	a, b := machine("a", 8), machine("b", 0)
	each(&a, func(x *Box) { x.Class = api.QoSGuaranteed })
	must.SliceNotEmpty(t, Plan([]Machine{a, b}, Limits{Classes: []string{api.QoSGuaranteed}}))
}

func each(m *Machine, f func(*Box)) {
	for i := range m.Boxes {
		f(&m.Boxes[i])
	}
}

func TestPredict_followsTheTrend(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	line := func(from, perMinute float64, minutes int) (out []api.Sample) {
		for i := range minutes + 1 {
			out = append(out, api.Sample{Time: start.Add(time.Duration(i) * time.Minute), CPUPercent: from + perMinute*float64(i)})
		}
		return out
	}
	cpu := func(s api.Sample) float64 { return s.CPUPercent }
	near := func(want, got float64) {
		t.Helper()
		must.True(t, math.Abs(want-got) < 1e-6, must.Sprintf("want %g, got %g", want, got))
	}
	near(0, Predict(nil, cpu, 0))
	near(50, Predict(line(50, 0, 15), cpu, 0))
	near(40+7.5*2, Predict(line(10, 2, 15), cpu, 0)) // it is at 40, and will be at 70
	near(45, Predict(line(10, 2, 15), cpu, 45))
	near(0, Predict(line(30, -2, 15), cpu, 0))
	near(14, Predict(line(10, 2, 1), cpu, 0)+3) // two samples make no trend: the mean
	near(16+3, Predict(line(10, 2, 3), cpu, 0)) // three minutes of a trend say three more
}

func TestPolicy_hours(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 11, 1, h, 30, 0, 0, time.UTC) }
	night := Policy{From: 22 * time.Hour, To: 6 * time.Hour}
	day := Policy{From: 8 * time.Hour, To: 18 * time.Hour}
	for h, want := range map[int][2]bool{0: {true, false}, 5: {true, false}, 6: {false, false}, 12: {false, true}, 18: {false, false}, 23: {true, false}} {
		must.Eq(t, want, [2]bool{night.open(at(h)), day.open(at(h))}, must.Sprint(h))
	}
	must.True(t, Policy{}.open(at(3)))
}

func TestLimits_checkNamesTheField(t *testing.T) {
	for field, l := range map[string]Limits{
		"moves": {Moves: -1}, "min_gain": {MinGain: 101}, "classes": {Classes: []string{"all"}},
	} {
		must.ErrorContains(t, l.Check(), field+":")
	}
	must.NoError(t, Limits{Moves: 5, MinGain: 2, Classes: []string{api.QoSGuaranteed}}.Check())
}
