package state

import "fmt"

// Limits are those of a sandbox beyond processor and memory. Zero is the node's own. They are what was asked for until its node
// has reported it, and what its node enforces after that.
type Limits struct {
	PIDs         int64 `codec:"pids"`
	DiskBytes    int64 `codec:"disk_bytes"`
	DiskInodes   int64 `codec:"disk_inodes"`
	IOReadBytes  int64 `codec:"io_read_bytes"` // per second, as the others of io
	IOWriteBytes int64 `codec:"io_write_bytes"`
	IOReadOps    int64 `codec:"io_read_ops"`
	IOWriteOps   int64 `codec:"io_write_ops"`
	// ReservedCPU and ReservedMB are what the placement was asked for, in CPUMillis and MemoryMB, where a change has
	// made those something else.
	ReservedCPU int64 `codec:"reserved_cpu"`
	ReservedMB  int64 `codec:"reserved_mb"`
}

// Reserved returns the processor and memory that the sandbox was placed with.
func (s Sandbox) Reserved() (cpuMillis, memoryMB int64) {
	cpuMillis, memoryMB = s.CPUMillis, s.MemoryMB
	if s.Limits.ReservedCPU != 0 {
		cpuMillis = s.Limits.ReservedCPU
	}
	if s.Limits.ReservedMB != 0 {
		memoryMB = s.Limits.ReservedMB
	}
	return cpuMillis, memoryMB
}

// Same reports whether two sets of limits are enforced alike.
func (l Limits) Same(other Limits) bool {
	l.ReservedCPU, l.ReservedMB = other.ReservedCPU, other.ReservedMB
	return l == other
}

func (c *SandboxLimits) check() error {
	if c.CPUMillis < 1 || c.MemoryMB < 1 {
		return limitErrorf("limits", "lack processor or memory")
	}
	return checkID(c.ID)
}

func (c *SandboxLimits) apply(tx *writeTx) (Result, error) {
	s, err := tx.sandbox(c.ID)
	if err != nil {
		return Result{}, err
	}
	if s.State.Ended() || s.State == Stopping {
		return Result{Sandbox: s}, fmt.Errorf("sandbox %s is %s: %w", s.ID, s.State, ErrState)
	}
	cpu, memory := s.Reserved()
	s.CPUMillis, s.MemoryMB, s.Limits = c.CPUMillis, c.MemoryMB, c.Limits
	s.Limits.ReservedCPU, s.Limits.ReservedMB = cpu, memory
	if mb := s.Limits.DiskBytes >> 20; mb > 0 {
		s.DiskMB = mb
	}
	s.endHold(c.Hold)
	return changed(s, tx.putSandbox(&s))
}
