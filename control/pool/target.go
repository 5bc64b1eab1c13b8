package pool

import (
	"math"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// usage is what a keeper has seen of a pool since its last look at its size.
type usage struct {
	hits, misses uint64
	least        int // ready slots, when there were the fewest
}

// nextTarget is how many slots a pool should have from now on. current is what it should have had so far.
func nextTarget(p *state.Pool, current int, u usage, now time.Time) int {
	switch p.Strategy {
	case state.StrategyDynamic:
		return bound(p, dynamicTarget(p, current, u))
	case state.StrategyHistorical:
		return bound(p, int(math.Ceil(max(forecast(p.Demand, now), forecast(p.Demand, now.Add(state.DemandWindow))))))
	default:
		return p.Min
	}
}

func bound(p *state.Pool, n int) int { return max(p.Min, min(n, p.Max)) }

// dynamicTarget grows by the pool's rate, at least by what was missing, and shrinks by it where more than half was never needed.
func dynamicTarget(p *state.Pool, current int, u usage) int {
	step := max(1, current*p.Rate/100)
	switch {
	case u.misses > 0:
		return current + max(step, int(min(u.misses, state.MaxPoolSlots)))
	case u.least > current/2:
		return current - step
	}
	return current
}

// Bounds of the trend, and how many windows it is taken from.
const (
	trendWindows = 6
	trendMin     = 0.5
	trendMax     = 2.0
	dayWindows   = int64(24 * time.Hour / state.DemandWindow)
	historyDays  = 7
)

// forecast is the demand that a time's window will see: what the same windows of past days saw on average, times how much more
// or less the last hour saw than theirs did.
func forecast(d state.Demand, at time.Time) float64 {
	window := state.WindowOf(at)
	mean, days := meanOf(d, window)
	if days == 0 {
		return 0
	}
	var lately, before float64
	for i := int64(1); i <= trendWindows; i++ {
		now, known := d.At(window - i)
		past, days := meanOf(d, window-i)
		if known && days > 0 {
			lately, before = lately+float64(now), before+past
		}
	}
	if before > 0 {
		mean *= max(trendMin, min(lately/before, trendMax))
	}
	return mean
}

// meanOf is the mean demand in the windows that are whole days before a window, as far as they are known.
func meanOf(d state.Demand, window int64) (mean float64, days int) {
	for day := int64(1); day <= historyDays; day++ {
		if n, known := d.At(window - day*dayWindows); known {
			mean += float64(n)
			days++
		}
	}
	if days > 0 {
		mean /= float64(days)
	}
	return mean, days
}
