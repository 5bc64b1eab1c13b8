package metrics

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Config of a Sampler.
type Config struct {
	// Interval between two samples of a sandbox.
	Interval time.Duration
	// Window is how far back samples are kept while a sandbox exists.
	Window time.Duration
	// Targets returns the sandboxes that run now. It is called once per interval.
	Targets func() []Target
	// Now is the clock; time.Now where it is nil.
	Now func() time.Time
}

// DefaultConfig samples every 5 s and keeps an hour: 720 samples of 136 bytes, 98 KB for a sandbox that lives that long.
func DefaultConfig(targets func() []Target) Config {
	return Config{Interval: 5 * time.Second, Window: time.Hour, Targets: targets}
}

func (c *Config) validate() error {
	if c.Targets == nil {
		return fmt.Errorf("metrics: no targets")
	}
	if c.Interval < 100*time.Millisecond || c.Interval > time.Hour {
		return fmt.Errorf("metrics: interval %s is not between 100ms and 1h", c.Interval)
	}
	if c.Window < c.Interval || c.Window/c.Interval > 100_000 {
		return fmt.Errorf("metrics: window %s is not between one and 100000 intervals of %s", c.Window, c.Interval)
	}
	return nil
}

// Sampler takes and keeps samples. It is safe for concurrent use.
type Sampler struct {
	config Config
	perBox int

	mu    sync.Mutex
	rings map[api.SandboxID]*ring
	grown Grown
	begun bool // a first round has been taken
}

// Grown is what all sandboxes together have used since the Sampler's first round, ended ones included up to their last sample.
type Grown struct {
	CPUNanos, DiskRead, DiskWritten, NetIn, NetOut uint64
}

// New returns a Sampler that samples once Run is called.
func New(c Config) (*Sampler, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Sampler{config: c, perBox: int(c.Window / c.Interval), rings: map[api.SandboxID]*ring{}}, nil
}

// Run samples until ctx ends.
func (s *Sampler) Run(ctx context.Context) {
	tick := time.NewTicker(s.config.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.Sample()
		}
	}
}

// Sample takes one sample of every target now and forgets the sandboxes that are no longer among them.
func (s *Sampler) Sample() {
	targets := s.config.Targets()
	type reading struct {
		id api.SandboxID
		c  Counters
		at time.Time
	}
	readings := make([]reading, 0, len(targets))
	live := make(map[api.SandboxID]bool, len(targets))
	for _, t := range targets {
		live[t.ID] = true
		// A sandbox that ends between the list and the reading has nothing to read; it is gone at the next turn.
		if c, err := t.Read(); err == nil {
			readings = append(readings, reading{t.ID, c, s.config.Now()})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.rings {
		if !live[id] {
			delete(s.rings, id)
		}
	}
	for _, r := range readings {
		box := s.rings[r.id]
		if box == nil {
			box = newRing(s.perBox)
			s.rings[r.id] = box
		}
		sample := Sample{Time: r.at, Counters: r.c}
		before, ok := box.last()
		if ok {
			sample.CPUPercent = percent(before, sample)
		}
		// What is there at the first round may have run for days under an earlier daemon.
		if ok || s.begun {
			s.grown.add(before.Counters, sample.Counters)
		}
		box.add(sample)
	}
	s.begun = true
}

// add adds what grew from one reading to the next. A counter that went back counts as not grown.
func (g *Grown) add(before, now Counters) {
	for _, c := range []struct {
		to          *uint64
		before, now uint64
	}{
		{&g.CPUNanos, before.CPUNanos, now.CPUNanos},
		{&g.DiskRead, before.DiskRead, now.DiskRead}, {&g.DiskWritten, before.DiskWritten, now.DiskWritten},
		{&g.NetIn, before.NetIn, now.NetIn}, {&g.NetOut, before.NetOut, now.NetOut},
	} {
		*c.to += max(c.now, c.before) - c.before
	}
}

// Grown returns it.
func (s *Sampler) Grown() Grown {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.grown
}

// percent is the share of one core between two samples; 0 where a counter went back.
func percent(before, now Sample) float64 {
	elapsed := now.Time.Sub(before.Time)
	if elapsed <= 0 || now.CPUNanos < before.CPUNanos {
		return 0
	}
	return 100 * float64(now.CPUNanos-before.CPUNanos) / float64(elapsed)
}

// Between returns the samples of a sandbox from start to end, both included, oldest first; a zero time is an open end. It
// is empty for a sandbox that is not known or not yet sampled.
func (s *Sampler) Between(id api.SandboxID, start, end time.Time) []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rings[id]; r != nil {
		return r.between(start, end)
	}
	return nil
}

// Last returns the newest sample of a sandbox.
func (s *Sampler) Last(id api.SandboxID) (Sample, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rings[id]; r != nil {
		return r.last()
	}
	return Sample{}, false
}

// Total adds up the newest samples of all sandboxes: what the node's own metrics show.
func (s *Sampler) Total() (sandboxes int, total Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rings {
		last, ok := r.last()
		if !ok {
			continue
		}
		sandboxes++
		total.CPUPercent += last.CPUPercent
		total.add(last.Counters)
		if last.Time.After(total.Time) {
			total.Time = last.Time
		}
	}
	return sandboxes, total
}

func (c *Counters) add(o Counters) {
	c.CPUNanos += o.CPUNanos
	c.MemoryBytes += o.MemoryBytes
	c.MemoryCache += o.MemoryCache
	c.MemoryTotal += o.MemoryTotal
	c.DiskRead += o.DiskRead
	c.DiskWritten += o.DiskWritten
	c.DiskUsed += o.DiskUsed
	c.DiskPartial = c.DiskPartial || o.DiskPartial
	c.DiskTotal += o.DiskTotal
	c.NetIn += o.NetIn
	c.NetOut += o.NetOut
	c.Processes += o.Processes
	c.CPUMillis += o.CPUMillis
}
