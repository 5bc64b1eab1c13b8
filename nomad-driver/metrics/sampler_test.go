package metrics

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// source is a set of sandboxes whose counters the test sets.
type source map[api.SandboxID]*Counters

func (s source) targets() []Target {
	var all []Target
	for id, c := range s {
		all = append(all, Target{ID: id, Read: func() (Counters, error) {
			if c == nil {
				return Counters{}, errors.New("ended")
			}
			return *c, nil
		}})
	}
	return all
}

func TestSampler_keepsAWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		targets := func() []Target {
			return []Target{{ID: "a", Read: func() (Counters, error) {
				return Counters{MemoryBytes: uint64(time.Since(start) / time.Second)}, nil
			}}}
		}
		s, err := New(Config{Interval: time.Second, Window: 5 * time.Second, Targets: targets})
		must.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		for range 12 {
			time.Sleep(time.Second) // virtual time
			synctest.Wait()
		}
		all := s.Between("a", time.Time{}, time.Time{})
		must.SliceLen(t, 5, all)
		for i, sample := range all {
			must.Eq(t, start.Add(time.Duration(8+i)*time.Second), sample.Time)
			must.Eq(t, uint64(8+i), sample.MemoryBytes)
		}
		must.Eq(t, all[1:3], s.Between("a", start.Add(9*time.Second), start.Add(10*time.Second)))
		must.SliceEmpty(t, s.Between("a", start.Add(time.Hour), time.Time{}))
		must.SliceEmpty(t, s.Between("a", start.Add(10*time.Second), start.Add(9*time.Second)))
		must.SliceEmpty(t, s.Between("unknown", time.Time{}, time.Time{}))
		cancel()
		<-done
	})
}

func TestSampler_turnsProcessorTimeIntoPercent(t *testing.T) {
	now := time.Unix(1000, 0)
	box := &Counters{}
	s, err := New(Config{Interval: time.Second, Window: time.Minute, Targets: source{"a": box}.targets, Now: func() time.Time { return now }})
	must.NoError(t, err)
	for _, step := range []struct {
		cpu  uint64
		want float64
	}{{5e8, 0}, {10e8, 50}, {30e8, 200}, {30e8, 0}, {1e8, 0}} {
		box.CPUNanos = step.cpu
		s.Sample()
		got, ok := s.Last("a")
		must.True(t, ok)
		must.Eq(t, step.want, got.CPUPercent)
		now = now.Add(time.Second)
	}
}

func TestSampler_forgetsWhatIsGone(t *testing.T) {
	src := source{"a": {Processes: 2}, "b": {Processes: 3}, "ended": nil}
	s, err := New(DefaultConfig(src.targets))
	must.NoError(t, err)
	s.Sample()
	n, total := s.Total()
	must.Eq(t, 2, n)
	must.Eq(t, uint64(5), total.Processes)
	delete(src, "a")
	s.Sample()
	must.SliceEmpty(t, s.Between("a", time.Time{}, time.Time{}))
	must.SliceLen(t, 2, s.Between("b", time.Time{}, time.Time{}))
}

func TestNew_namesTheFieldAtFault(t *testing.T) {
	targets := source{}.targets
	for _, tc := range []struct {
		config Config
		want   string
	}{
		{Config{Interval: time.Second, Window: time.Minute}, "targets"},
		{Config{Interval: time.Millisecond, Window: time.Minute, Targets: targets}, "interval 1ms"},
		{Config{Interval: time.Minute, Window: time.Second, Targets: targets}, "window 1s"},
		{Config{Interval: time.Second, Window: 1e6 * time.Second, Targets: targets}, "window"},
	} {
		_, err := New(tc.config)
		must.ErrorContains(t, err, tc.want)
	}
}

func TestSampler_whatHasGrownCountsFromItsFirstRound(t *testing.T) {
	old := &Counters{CPUNanos: 1000, NetIn: 50}
	src := source{"old": old}
	s, err := New(Config{Interval: time.Second, Window: time.Minute, Targets: src.targets})
	must.NoError(t, err)
	s.Sample()
	must.Eq(t, Grown{}, s.Grown())
	old.CPUNanos, old.NetIn = 1100, 40 // the second went back
	src["new"] = &Counters{CPUNanos: 7, DiskRead: 3}
	s.Sample()
	must.Eq(t, Grown{CPUNanos: 107, DiskRead: 3}, s.Grown())
	delete(src, "new") // its end takes nothing away
	s.Sample()
	must.Eq(t, Grown{CPUNanos: 107, DiskRead: 3}, s.Grown())
}

func BenchmarkSample500(b *testing.B) {
	src := source{}
	for range 500 {
		src[api.NewSandboxID()] = &Counters{}
	}
	s, err := New(DefaultConfig(src.targets))
	must.NoError(b, err)
	for b.Loop() {
		s.Sample()
	}
}
