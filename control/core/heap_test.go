package core

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestGCPercent_letsASmallHeapGrowToTheFloorAndALargeOneDouble(t *testing.T) {
	for live, want := range map[uint64]int{
		0:         1500, // as the first one
		1 << 10:   6300,
		1 << 20:   6300,
		16 << 20:  300,
		32 << 20:  100,
		64 << 20:  100,
		500 << 20: 100,
	} {
		must.Eq(t, want, gcPercent(live), must.Sprint(live))
	}
}
