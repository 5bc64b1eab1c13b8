package driver

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// TaskStats sends the sandbox's counters at the given interval until the sandbox or ctx ends.
func (d *Driver) TaskStats(ctx context.Context, taskID string, interval time.Duration) (<-chan *drivers.TaskResourceUsage, error) {
	id, err := d.known(taskID)
	if err != nil {
		return nil, taskGone{err}
	}
	if interval <= 0 {
		return nil, errors.New("interval of the task's statistics is not above zero")
	}
	ch := make(chan *drivers.TaskResourceUsage)
	go func() {
		defer close(ch)
		d.sample(ctx, id, interval, ch)
	}()
	return ch, nil
}

// taskGone tells Nomad not to ask again (structs.Recoverable); it would, every second.
type taskGone struct{ error }

// IsRecoverable is false: a task that is gone stays gone.
func (taskGone) IsRecoverable() bool { return false }

func (d *Driver) sample(ctx context.Context, id api.SandboxID, interval time.Duration, ch chan<- *drivers.TaskResourceUsage) {
	_, node, compute := d.settings()
	usage := usage{compute: compute}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(interval)
		stats, err := node.Stats(ctx, id)
		if err != nil {
			if s := api.StatusOf(err); s == 404 || s == 409 { // gone, or no longer running
				return
			}
			continue // the daemon restarts: the next sample will do
		}
		select {
		case <-ctx.Done():
			return
		case <-d.ctx.Done():
			return
		case ch <- usage.of(stats):
		}
	}
}

// usage turns counters into the rates that Nomad shows.
type usage struct {
	compute compute
	last    nodeapi.Stats
}

func (u *usage) of(s nodeapi.Stats) *drivers.TaskResourceUsage {
	percent := rate(u.last.CPUNanos, s.CPUNanos, u.last.Time, s.Time)
	cpu := &drivers.CpuStats{
		Percent:          percent,
		UserMode:         rate(u.last.UserNanos, s.UserNanos, u.last.Time, s.Time),
		SystemMode:       rate(u.last.SystemNanos, s.SystemNanos, u.last.Time, s.Time),
		TotalTicks:       u.compute.ticks(percent),
		ThrottledPeriods: s.Throttled,
		ThrottledTime:    s.ThrottledNs,
	}
	memory := &drivers.MemoryStats{
		RSS: s.MemoryBytes, Cache: s.MemoryCache, Usage: s.MemoryBytes + s.MemoryCache, MaxUsage: s.MemoryMax,
	}
	for _, f := range []struct {
		field string
		list  *[]string
		names []string
	}{
		{"cpu_nanos", &cpu.Measured, []string{"Percent", "Total Ticks"}},
		{"user_nanos", &cpu.Measured, []string{"User Mode"}},
		{"system_nanos", &cpu.Measured, []string{"System Mode"}},
		{"throttled_periods", &cpu.Measured, []string{"Throttled Periods"}},
		{"throttled_nanos", &cpu.Measured, []string{"Throttled Time"}},
		{"memory_bytes", &memory.Measured, []string{"RSS", "Usage"}},
		{"memory_cache_bytes", &memory.Measured, []string{"Cache"}},
		{"memory_max_bytes", &memory.Measured, []string{"Max Usage"}},
	} {
		if slices.Contains(s.Measured, f.field) {
			*f.list = append(*f.list, f.names...)
		}
	}
	u.last = s
	return &drivers.TaskResourceUsage{
		ResourceUsage: &drivers.ResourceUsage{CpuStats: cpu, MemoryStats: memory},
		Timestamp:     s.Time.UnixNano(),
	}
}

// rate is the share of one core in percent; 0 for the first sample and where a counter went back.
func rate(from, to uint64, since, until time.Time) float64 {
	if since.IsZero() || !until.After(since) || to < from {
		return 0
	}
	return 100 * float64(to-from) / float64(until.Sub(since).Nanoseconds())
}
