package sandbox_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// BenchmarkCreate creates and releases one sandbox after the other. It reports the median of a create that ends with PID 1
// serving, that of a release, and the floor of the same moment: what a bare clone into the same namespaces, an overlay
// mount and an exec of a static program cost here. -v prints the median of each step.
//
// An ext4 without a journal looks at every inode that was deleted of late before it makes a new one, which a benchmark
// that creates and deletes makes expensive: hence the same on tmpfs.
func BenchmarkCreate(b *testing.B) {
	b.Run("state=disk", func(b *testing.B) { benchmarkCreate(b, "") })
	b.Run("state=tmpfs", func(b *testing.B) { benchmarkCreate(b, "/dev/shm") })
}

func benchmarkCreate(b *testing.B, dir string) {
	h := sandboxtest.NewHostIn(b, dir)
	var create, release, floor []time.Duration
	steps := make(map[string][]int64)
	var order []string
	for i := 0; b.Loop(); i++ {
		c := h.Config()
		start := time.Now()
		s, err := sandbox.Create(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		create = append(create, time.Since(start))
		for _, st := range s.Steps() {
			if _, ok := steps[st.Name]; !ok {
				order = append(order, st.Name)
			}
			steps[st.Name] = append(steps[st.Name], st.Nanos)
		}
		start = time.Now()
		sandboxtest.Release(b, s)
		release = append(release, time.Since(start))
		if i%4 == 0 {
			d, err := sandboxtest.Floor()
			if err != nil {
				b.Fatal(err)
			}
			floor = append(floor, d)
		}
	}
	c, f := median(create), median(floor)
	b.ReportMetric(float64(c.Microseconds()), "µs/create-p50")
	b.ReportMetric(float64(median(release).Microseconds()), "µs/release-p50")
	b.ReportMetric(float64(f.Microseconds()), "µs/floor-p50")
	b.ReportMetric(float64(c)/float64(f), "create/floor")
	if testing.Verbose() {
		var out strings.Builder
		for _, name := range order {
			slices.Sort(steps[name])
			fmt.Fprintf(&out, "%-14s %6d µs\n", name, steps[name][len(steps[name])/2]/1000)
		}
		b.Log("median steps; init is the wait for boot.*\n" + out.String())
	}
}

// BenchmarkIdleMemory reports what an idle sandbox keeps for itself: private memory of PID 1.
func BenchmarkIdleMemory(b *testing.B) {
	h := sandboxtest.NewHost(b)
	h.Create(b, h.Config()) // with which the measured one shares the binary's pages
	var kib []time.Duration
	for b.Loop() {
		s, err := sandbox.Create(b.Context(), h.Config())
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // what runs right after the start has run
		n, err := sandboxtest.PrivateKiB(s.Ref().PID)
		if err != nil {
			b.Fatal(err)
		}
		kib = append(kib, time.Duration(n))
		sandboxtest.Release(b, s)
	}
	b.ReportMetric(float64(median(kib)), "KiB/private-p50")
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[len(d)/2]
}
