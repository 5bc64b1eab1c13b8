package sandbox_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
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

// BenchmarkHardening creates sandboxes with and without each part of the hardening, in turns, so that what else happens on
// the machine meets all alike. A cost is the median of the differences within a turn; "all" is that of the hardening as a whole. The exec
// of true(1) in each is measured as well. Beside the time on the clock is that of processors, of this process and of the sandbox, in which other load
// shows less.
func BenchmarkHardening(b *testing.B) {
	h := sandboxtest.NewHost(b)
	variants := []struct {
		name  string
		walls sandbox.Walls
	}{
		{"full", sandbox.Walls{}},
		{"seccomp", sandbox.Walls{Seccomp: true}},
		{"landlock", sandbox.Walls{Landlock: true}},
		{"masks", sandbox.Walls{Masks: true}},
		{"capabilities", sandbox.Walls{Capabilities: true}},
		{"all", sandbox.Walls{Seccomp: true, Landlock: true, Masks: true, Capabilities: true}},
	}
	create, run := make([][]time.Duration, len(variants)), make([][]time.Duration, len(variants))
	createCPU, runCPU := make([][]time.Duration, len(variants)), make([][]time.Duration, len(variants))
	used := func(s *sandbox.Sandbox) (d time.Duration) {
		var r unix.Rusage
		must.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &r))
		if s != nil {
			u, err := s.Usage()
			must.NoError(b, err)
			d = time.Duration(u.CPUNanos)
		}
		return d + time.Duration(r.Utime.Nano()+r.Stime.Nano())
	}
	var floor []time.Duration
	for b.Loop() {
		f, err := sandboxtest.Floor()
		must.NoError(b, err)
		floor = append(floor, f)
		for k := range variants {
			i := (k + len(floor)) % len(variants) // whoever is first in a turn meets what the floor has left behind
			sandbox.Without(b, variants[i].walls)
			c := h.Config()
			before := used(nil)
			start := time.Now()
			s, err := sandbox.Create(b.Context(), c)
			if err != nil {
				b.Fatal(err)
			}
			create[i] = append(create[i], time.Since(start))
			createCPU[i] = append(createCPU[i], used(s)-before)
			for range 4 {
				before = used(s)
				start = time.Now()
				if _, err := sandboxtest.Exec(b.Context(), s, guest.Start{Argv: []string{"/bin/true"}}); err != nil {
					b.Fatal(err)
				}
				run[i] = append(run[i], time.Since(start))
				runCPU[i] = append(runCPU[i], used(s)-before)
			}
			sandboxtest.Release(b, s)
		}
	}
	last := len(variants) - 1
	b.ReportMetric(0, "ns/op")
	for i, v := range variants[1:] {
		b.ReportMetric(micros(costs(create[0], create[i+1])), "create-cost-"+v.name+"-µs")
		b.ReportMetric(micros(costs(createCPU[0], createCPU[i+1])), "create-cpu-"+v.name+"-µs")
	}
	b.ReportMetric(micros(costs(run[0], run[last])), "exec-cost-all-µs")
	b.ReportMetric(micros(costs(runCPU[0], runCPU[last])), "exec-cpu-all-µs")
	b.ReportMetric(micros(createCPU[0]), "create-cpu-hardened-µs")
	b.ReportMetric(micros(floor), "floor-p50-µs")
	for i, name := range map[int]string{0: "hardened", last: "bare"} {
		b.ReportMetric(micros(create[i]), "create-"+name+"-p50-µs")
		b.ReportMetric(micros(run[i]), "exec-"+name+"-p50-µs")
	}
}

// costs returns by how much each of with took longer than its like of without.
func costs(with, without []time.Duration) []time.Duration {
	d := make([]time.Duration, len(with))
	for i := range with {
		d[i] = with[i] - without[i]
	}
	return d
}

// micros returns the median in microseconds. It sorts d, whose order is of no use any more.
func micros(d []time.Duration) float64 { return float64(median(d).Nanoseconds()) / 1000 }
