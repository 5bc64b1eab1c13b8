package pool

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/state"
)

func TestNextTarget(t *testing.T) {
	dynamic := &state.Pool{Strategy: state.StrategyDynamic, Min: 2, Max: 20, Rate: 50}
	for name, c := range map[string]struct {
		pool    *state.Pool
		current int
		seen    usage
		want    int
	}{
		"a fixed one is what it is":            {&state.Pool{Strategy: state.StrategyFixed, Min: 4, Max: 4}, 9, usage{misses: 100}, 4},
		"grows by its rate after a miss":       {dynamic, 8, usage{misses: 1}, 12},
		"grows by what was missing":            {dynamic, 2, usage{misses: 7}, 9},
		"grows by one at least":                {&state.Pool{Strategy: state.StrategyDynamic, Min: 1, Max: 9, Rate: 1}, 3, usage{misses: 1}, 4},
		"stays below its most":                 {dynamic, 18, usage{misses: 9}, 20},
		"stays where half of it was used":      {dynamic, 8, usage{hits: 5, least: 3}, 8},
		"shrinks where most was never used":    {dynamic, 8, usage{hits: 1, least: 7}, 4},
		"stays above its least":                {dynamic, 2, usage{least: 2}, 2},
		"one without a history has its least":  {&state.Pool{Strategy: state.StrategyHistorical, Min: 3, Max: 9}, 9, usage{}, 3},
		"a miss counts more than idle ones do": {dynamic, 8, usage{misses: 1, least: 8}, 12},
	} {
		t.Run(name, func(t *testing.T) {
			must.Eq(t, c.want, nextTarget(c.pool, c.current, c.seen, time.Unix(1_800_000_000, 0)))
		})
	}
}

// days makes a demand that is the same each day: n in the window of at, and in those of the hour before it.
func days(at time.Time, count int, n uint32) state.Demand {
	last := state.WindowOf(at)
	first := last - int64(count)*dayWindows
	d := state.Demand{First: first - trendWindows, Counts: make([]uint32, last-first+trendWindows+1)}
	for day := range int64(count) + 1 {
		for w := int64(0); w <= trendWindows; w++ {
			d.Counts[day*dayWindows+w] = n
		}
	}
	d.Counts[len(d.Counts)-1] = 0 // now is not known yet
	return d
}

func TestForecast(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	must.Eq(t, 0, forecast(state.Demand{}, at))
	must.Eq(t, 12, forecast(days(at, 3, 12), at), must.Sprint("as the days before"))
	busy := days(at, 3, 12)
	for i := 1; i <= trendWindows; i++ {
		busy.Counts[len(busy.Counts)-1-i] = 18
	}
	must.Eq(t, 18, forecast(busy, at), must.Sprint("half as much again, as the last hour"))
	for i := 1; i <= trendWindows; i++ {
		busy.Counts[len(busy.Counts)-1-i] = 1200
	}
	must.Eq(t, 24, forecast(busy, at), must.Sprint("a trend has its bounds"))
	p := &state.Pool{Strategy: state.StrategyHistorical, Min: 1, Max: 10, Demand: days(at, 3, 12)}
	must.Eq(t, 10, nextTarget(p, 1, usage{}, at))
	p.Max = 100
	must.Eq(t, 12, nextTarget(p, 1, usage{}, at.Add(-state.DemandWindow)), must.Sprint("it is there before the window begins"))
}
