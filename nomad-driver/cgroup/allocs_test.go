//go:build !race

package cgroup

import (
	"testing"

	"github.com/shoenig/test/must"
)

// The race detector's pools lose things on purpose, so that this is looked at without it.
func TestMeter_readsWithoutAllocation(t *testing.T) {
	meter, err := newGroup(t, newKernel(t), Limits{}).Meter()
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, meter.Close()) })
	must.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := meter.Usage(); err != nil {
			t.Error(err)
		}
	}))
}
