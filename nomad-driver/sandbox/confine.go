package sandbox

// Charged returns the bytes that count against its memory limit, its page cache too.
func (s *Sandbox) Charged() (uint64, error) { return s.meter.charged(s) }

// KernelNanos returns how much processor time its processes have had in the kernel.
func (s *Sandbox) KernelNanos() (uint64, error) { return s.group.KernelNanos() }

// Confine keeps its processes on these cores; none lets them run on all. What a daemon has set stays until the sandbox's end, or that of its processes: a
// restored one begins on all cores. Errors are those of cgroup.Group.Confine.
func (s *Sandbox) Confine(cores []int) error { return s.group.Confine(cores) }

// Confined returns the cores that Confine has left to it; nil: all.
func (s *Sandbox) Confined() ([]int, error) { return s.group.Confined() }
