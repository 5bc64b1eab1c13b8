package node

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Below these shares of a disk a node warns; below its reserve it takes no sandbox.
const (
	diskLow   = 0.10
	inodesLow = 0.05
)

// checks looks at each thing that a node needs, in the order of people's interest, and says in a line how it is.
func (n *Node) checks() []nodeapi.Check {
	return []nodeapi.Check{n.runtimeCheck(), n.checkpointCheck(), n.diskCheck(), n.networkCheck(), n.cgroupCheck(), n.clock.check(time.Now())}
}

func passing(name, format string, args ...any) nodeapi.Check {
	return nodeapi.Check{Name: name, Status: nodeapi.CheckPassing, Output: fmt.Sprintf(format, args...)}
}

func warning(name, format string, args ...any) nodeapi.Check {
	return nodeapi.Check{Name: name, Status: nodeapi.CheckWarning, Output: fmt.Sprintf(format, args...)}
}

func critical(name string, err error) nodeapi.Check {
	return nodeapi.Check{Name: name, Status: nodeapi.CheckCritical, Output: err.Error()}
}

func (n *Node) runtimeCheck() nodeapi.Check {
	if err := n.ready(); err != nil {
		return critical(nodeapi.CheckRuntime, err)
	}
	running := n.running()
	if running >= n.cfg.MaxSandboxes {
		return warning(nodeapi.CheckRuntime, "all of at most %d sandboxes run", n.cfg.MaxSandboxes)
	}
	return passing(nodeapi.CheckRuntime, "%d of at most %d sandboxes run", running, n.cfg.MaxSandboxes)
}

func (n *Node) checkpointCheck() nodeapi.Check {
	switch {
	case n.engine != nil:
		back, ahead := "large memory comes back while the sandbox runs", "most of it is copied before a snapshot"
		if err := n.engine.Lazy(); err != nil {
			back = fmt.Sprintf("all memory comes back at once: %v", err)
		}
		if err := n.engine.Ahead(); err != nil {
			ahead = fmt.Sprintf("it is copied in a snapshot, by all processors: %v", err)
		}
		if err := n.engine.Beside(); err != nil {
			ahead += fmt.Sprintf("; CRIU copies what is left alone: %v", err)
		}
		if err := n.engine.Spare(); err != nil {
			back += fmt.Sprintf("; none stands ready: %v", err)
		}
		return passing(nodeapi.CheckCheckpoint, "CRIU %s writes them; %s; %s", n.engine.Version(), back, ahead)
	case n.cfg.CRIUPath != "":
		return warning(nodeapi.CheckCheckpoint, "none, pauses freeze only: %v", n.noEngine)
	default:
		return passing(nodeapi.CheckCheckpoint, "none, pauses freeze only: no CRIU is configured")
	}
}

func (n *Node) diskCheck() nodeapi.Check {
	var st unix.Statfs_t
	if err := unix.Statfs(n.cfg.StateDir, &st); err != nil {
		return critical(nodeapi.CheckDisk, fmt.Errorf("statfs %s: %w", n.cfg.StateDir, err))
	}
	const gib = 1 << 30
	size, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	line := fmt.Sprintf("%.1f of %.1f GiB are free", float64(free)/gib, float64(size)/gib)
	if st.Files > 0 { // some file systems count none
		line += fmt.Sprintf(", and %.0f %% of the inodes", 100*float64(st.Ffree)/float64(st.Files))
	}
	switch {
	case free < n.cfg.DiskReserve:
		return critical(nodeapi.CheckDisk, n.lowDisk(free))
	case float64(free) < diskLow*float64(size), st.Files > 0 && float64(st.Ffree) < inodesLow*float64(st.Files):
		return warning(nodeapi.CheckDisk, "low: %s", line)
	}
	return passing(nodeapi.CheckDisk, "%s", line)
}

func (n *Node) networkCheck() nodeapi.Check {
	if n.network == nil {
		if n.cfg.Network.Mode == NetworkAuto {
			return warning(nodeapi.CheckNetwork, "sandboxes have their loopback only: %s", n.noNetwork)
		}
		return passing(nodeapi.CheckNetwork, "sandboxes have their loopback only: %s", n.noNetwork)
	}
	ready, used, rest := n.network.Counts()
	line := fmt.Sprintf("%d slots are ready, %d in use, %d rest", ready, used, rest)
	if ready == 0 && n.running() < n.cfg.MaxSandboxes {
		return warning(nodeapi.CheckNetwork, "the next sandbox waits for its network: %s", line)
	}
	return passing(nodeapi.CheckNetwork, "%s", line)
}

func (n *Node) cgroupCheck() nodeapi.Check {
	if n.cgroups == nil {
		return passing(nodeapi.CheckCgroups, "none are used")
	}
	names, err := n.cgroups.List()
	if err != nil {
		return critical(nodeapi.CheckCgroups, err)
	}
	return passing(nodeapi.CheckCgroups, "version %d, %d groups below %s", n.cgroups.Version(), len(names), n.cfg.CgroupParent)
}

// A step of the clock is told for a while: deadlines, links and certificates that were in between are wrong by it.
const (
	clockStep     = 500 * time.Millisecond
	clockStepTold = 10 * time.Minute
)

// clock watches the wall clock against the monotonic one.
type clock struct {
	mu      sync.Mutex
	last    time.Time // of the last look, with both readings
	step    time.Duration
	stepped time.Time // zero: never
	synced  func() (ok bool, off time.Duration, err error)
}

func newClock() *clock { return &clock{last: time.Now(), synced: kernelClock} }

// check takes the time now, with its monotonic reading.
func (c *clock) check(now time.Time) nodeapi.Check {
	c.mu.Lock()
	c.note(now.Round(0).Sub(c.last.Round(0))-now.Sub(c.last), now)
	c.last = now
	step, told := c.step, !c.stepped.IsZero() && now.Sub(c.stepped) < clockStepTold
	c.mu.Unlock()
	ok, off, err := c.synced()
	switch {
	case told:
		return warning(nodeapi.CheckClock, "it was set by %s, %s ago", step.Round(time.Millisecond), now.Sub(c.stepped).Round(time.Second))
	case err != nil:
		return warning(nodeapi.CheckClock, "the kernel does not tell how it is set: %v", err)
	case !ok:
		return passing(nodeapi.CheckClock, "steady, but nothing sets it: the kernel calls it unsynchronized")
	}
	return passing(nodeapi.CheckClock, "synchronized, at most %s off", off.Round(time.Microsecond))
}

// note takes by how much the wall clock moved more than time did. Called with the lock held.
func (c *clock) note(moved time.Duration, now time.Time) {
	if moved.Abs() >= clockStep {
		c.step, c.stepped = moved, now
	}
}

// kernelClock asks the kernel whether something keeps its clock right, and how far off it may be: adjtimex(2).
func kernelClock() (bool, time.Duration, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return false, 0, fmt.Errorf("adjtimex: %w", err)
	}
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, time.Duration(t.Maxerror) * time.Microsecond, nil
}
