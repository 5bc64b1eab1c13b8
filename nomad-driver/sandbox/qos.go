package sandbox

import "fmt"

// QoS is how a sandbox fares against the others when the machine runs short. Limits are what it may have at most; the class
// decides who gets less of what there is, and who ends first.
type QoS string

// The classes.
const (
	Guaranteed QoS = "guaranteed"  // its memory limit is kept for it, four times the weight
	Burstable  QoS = "burstable"   // the ordinary one
	BestEffort QoS = "best_effort" // a tenth of the weight; gives memory first, ends first
)

// Check refuses what is no class.
func (q QoS) Check() error {
	if q != Guaranteed && q != Burstable && q != BestEffort {
		return fmt.Errorf("qos %.40q is none of %s, %s, %s", string(q), Guaranteed, Burstable, BestEffort)
	}
	return nil
}

// CPUWeight returns the class's weight where that of an ordinary sandbox is base: 1..10000 as cgroup v2's cpu.weight.
func (q QoS) CPUWeight(base int64) int64 {
	switch q {
	case Guaranteed:
		return min(base*4, 10_000)
	case BestEffort:
		return max(base/10, 1)
	}
	return base
}

// memoryLow returns what of a memory limit the kernel shall leave alone, or 0. Only the class that is named for it has
// such a thing: the sum of all sandboxes' limits may be more than the machine has, and what is kept for them is taken from
// the host's own services.
func (q QoS) memoryLow(limit int64) int64 {
	if q == Guaranteed {
		return limit
	}
	return 0
}

// memorySoft returns from where on a group of cgroup v1 gives memory before others do.
func (q QoS) memorySoft(limit int64) int64 {
	switch q {
	case Guaranteed:
		return limit
	case BestEffort:
		return min(limit, 1<<20)
	}
	return limit / 2
}

// oomScoreAdj returns the place in the order in which the kernel ends processes when the machine, not the sandbox, is out of
// memory: thousandths of the machine's memory that a process counts as having beyond its own. All sandboxes come before the
// host's services, which have 0. A process inside may raise its own, never lower it.
func (q QoS) oomScoreAdj() string {
	switch q {
	case Guaranteed:
		return "100"
	case BestEffort:
		return "900"
	}
	return "500"
}
