package lifecycle

import "github.com/soulbox-dev/soulbox/control/state"

// Size fills in what a create of a template that does not ask for a size would have, and checks what is there: thousandths of a core, MiB of
// memory and of disk.
func (s *Service) Size(t state.Template, cpuMillis, memoryMB, diskMB *int64) error {
	for _, l := range []struct {
		name            string
		v               *int64
		built, fallback int64
		low, high       int64
	}{
		{"cpu_millis", cpuMillis, t.CPUMillis, s.cfg.DefaultCPUMillis, minCPUMillis, s.cfg.MaxCPUMillis},
		{"memory_mb", memoryMB, t.MemoryMB, s.cfg.DefaultMemoryMB, minMemoryMB, s.cfg.MaxMemoryMB},
		{"disk_mb", diskMB, 0, s.cfg.DefaultDiskMB, 1, s.cfg.MaxDiskMB},
	} {
		orDefault(l.v, l.built)
		orDefault(l.v, l.fallback)
		if *l.v < l.low || *l.v > l.high {
			return invalid("%s is %d, %d to %d are allowed", l.name, *l.v, l.low, l.high)
		}
	}
	return nil
}
