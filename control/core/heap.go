package core

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// heapFloor is what the service's heap may grow to before any of it is collected. A service with little to remember makes as much in fifty creates as it has, and would collect
// in the midst of them, which takes more than a tenth of their time.
const heapFloor = 64 << 20

var holdGC = sync.OnceFunc(func() {
	if _, set := os.LookupEnv("GOGC"); !set {
		paceGC(nil)
	}
})

// HoldGC has this process collect garbage no earlier than at a heap of 64 MiB, and beyond that as ever. Who has set GOGC keeps that. It is for processes whose work the
// service is.
func HoldGC() { holdGC() }

// cycle is collected with each collection, and then sees to the next one.
type cycle struct{ _ [16]byte }

func paceGC(*cycle) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(gcPercent(live[0].Value.Uint64()))
	runtime.SetFinalizer(&cycle{}, paceGC)
}

// gcPercent is how much, in percent of what is alive, comes until the next collection.
func gcPercent(live uint64) int {
	if live == 0 {
		live = 4 << 20 // none was collected yet: as the runtime begins
	}
	live = max(live, 1<<20)
	return int(max(200, heapFloor*100/live)) - 100
}
